"""Options of the command line, made from classes of settings: each field gives a name, a default and a help text."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from .cache.errors import SettingsError, spell_settings

_NAMES = {"feature": "features", "learning_rate": "lr", "seeds": "seed"}
"""Options that are not named as their settings."""
_Command = Callable[..., None]
_type_hints = functools.cache(typing.get_type_hints)


@dataclasses.dataclass(frozen=True)
class Fields:
    """Marks a parameter of a command that stands for one option for each field of a dataclass.

    The parameter receives an object of the type that it is annotated with, which is made of the values by name.
    """

    of: Any  # the dataclass; its fields are declared with `setting`
    only: tuple[str, ...] = ()  # the fields to offer; empty for all
    without: tuple[str, ...] = ()  # fields to leave out
    lists: tuple[str, ...] = ()  # fields whose options take several values
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)  # that replace the fields' own
    help: dict[str, str] = dataclasses.field(default_factory=dict)  # texts that replace the fields' own


def command(app: typer.Typer, name: str) -> Callable[[_Command], _Command]:
    """Register a function as a command. Its parameters that are marked with `Fields` become options."""

    def register(function: _Command) -> _Command:
        parameters: list[inspect.Parameter] = []
        groups: dict[str, Callable[[dict[str, Any]], Any]] = {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            kind, *marks = typing.get_args(parameter.annotation) or (None,)
            if marks and isinstance(marks[0], Fields):
                options, groups[parameter.name] = expand(marks[0], kind)
                parameters += options
            else:
                parameters.append(parameter)

        def run(**values: Any) -> None:
            function(**{group: collect(values) for group, collect in groups.items()}, **values)

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name)(run)
        return function

    return register


def option_name(setting: str) -> str:
    """Return the option of a setting."""
    return "--" + _NAMES.get(setting, setting).replace("_", "-")


def refuse_unused(ctx: typer.Context, reason: str, *settings: str) -> None:
    """Refuse options that were given but have no effect.

    Raises:
        SettingsError: one of them was given.
    """
    for parameter in ctx.command.params:
        if parameter.name in settings and was_given(ctx, parameter.name):
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            raise SettingsError(f"{names} has no effect {reason}")


def was_given(ctx: typer.Context, setting: str) -> bool:
    """Return whether the option of a setting was given on the command line."""
    source = ctx.get_parameter_source(setting)
    return source is not None and source.name == "COMMANDLINE"


def without_options(arguments: Sequence[str], valued: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return the arguments of a command without some options: those with a value, and its value; and flags."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in valued:
            next(rest, None)
        elif argument not in flags and argument.partition("=")[0] not in valued:
            kept.append(argument)
    return kept


def expand(fields: Fields, make: Callable[..., Any]) -> tuple[list[inspect.Parameter], Callable[[dict[str, Any]], Any]]:
    """Make the options of some fields.

    Returns the options' parameters, and a function that takes their values from those of all, to make one object.
    """
    parameters: list[inspect.Parameter] = []
    parsers: dict[str, Callable[[str], Any]] = {}
    hints = _type_hints(fields.of)
    own = inspect.get_annotations(fields.of)
    for field in sorted(dataclasses.fields(fields.of), key=lambda field: field.name not in own):  # inherited ones last
        name, default = field.name, fields.defaults.get(field.name, field.default)
        kind, metavar = hints[field.name], None
        if name in fields.without or (fields.only and name not in fields.only):
            continue
        parse, shown = field.metadata["parse"], field.metadata["shown"]
        if name in fields.lists or isinstance(default, tuple):
            values: tuple[Any, ...] = default if isinstance(default, tuple) else (default,)
            item: Any = type(values[0]) if default is not None else typing.get_args(kind)[0]
            shown = shown if default is None else ",".join(map(str, values))
            parse = functools.partial(_parse_list, name, item)
            metavar = f"<{'|'.join(item) if issubclass(item, StrEnum) else item.__name__},...>"
        if parse is not None:  # typer leaves the value as text
            parsers[name], kind, default = parse, str | None, None if default is None else shown
        option = option_name(name)
        option += f"/--no-{option[2:]}" if default is True or kind == bool | None else ""
        help = spell_settings(fields.help.get(name, field.metadata["help"]), lambda name, _: option_name(name))
        info = typer.Option(option, help=help, metavar=metavar, show_default=default is not None or shown or True)
        annotation: Any = Annotated[kind, info]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def collect(values: dict[str, Any]) -> Any:
        ours = {parameter.name: values.pop(parameter.name) for parameter in parameters}
        read = {name: parse(ours[name]) for name, parse in parsers.items() if ours[name] is not None}
        return make(**ours | read)

    return parameters, collect


def _parse_list(name: str, kind: type[Any], text: str) -> tuple[Any, ...]:
    """Read the comma-separated values of an option."""
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        examples = ", ".join(kind) if issubclass(kind, StrEnum) else "0.1,0.01" if kind is float else "0,1,2"
        raise SettingsError(f"`{name}` is {text!r}; write values with commas between, such as {examples}") from None
