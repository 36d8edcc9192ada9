"""What every format has in common."""

from __future__ import annotations

import abc
import importlib.util
import types
from pathlib import Path
from typing import Any, ClassVar

from ...cache.errors import SettingsError
from ..encoders.pooling import Pooling
from ..settings import Long, Task
from .source import Answers, Source, Texts


class Exporter(abc.ABC):
    """One format, of one run. A subclass says what it cannot carry, writes a folder, and loads it as its users do."""

    library: ClassVar[str]
    """What loads it, as the hub calls that library."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules besides those of headstart's own dependencies."""
    install: ClassVar[str] = ""
    """What installs these."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def require_libraries(self) -> None:
        """Refuse a format whose libraries are missing.

        Raises:
            SettingsError: one is.
        """
        if absent := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            raise SettingsError(f"this format needs {absent[0]}, which is not installed; run `{self.install}`")

    def problems(self) -> list[str]:
        """Return what the format cannot carry of the run, in words that follow "because"; empty if it carries all."""
        source, problems = self.source, []
        if source.given.long_texts.long is not Long.CUT:
            problems.append(f"a long text is encoded by `long={source.given.long_texts.long}`")
        return problems

    @abc.abstractmethod
    def write(self, folder: Path) -> None:
        """Write the files."""

    @abc.abstractmethod
    def answers(self, folder: Path, texts: Texts) -> Answers:
        """Return what the folder says of texts, loaded as its users load it."""

    @abc.abstractmethod
    def usage(self) -> str:
        """Return the Python code that loads the folder, from inside it, and classifies ``texts``."""


def of_prefix(source: Source) -> list[str]:
    """The problem of formats whose tokenizer puts nothing before a text."""
    return [f"the prompt {source.given.prefix!r} stands before every text"] if source.given.prefix else []


def of_pairs(source: Source) -> list[str]:
    """The problem of formats that read single texts."""
    return ["it reads pairs of texts"] if source.given.pairs else []


def of_decisions(source: Source) -> list[str]:
    """The problem of formats that predict the class with the greatest logit."""
    head = source.head
    if head.task is Task.ORDINAL:
        return ["its classes have an order"]
    if head.task is Task.CLASSES and head.thresholds is not None:
        return ["it predicts by thresholds, and not always the most probable class"]
    return []


def of_first_token(source: Source) -> list[str]:
    """The problem of formats that have linear layers on the first token's state, and nothing else."""
    names = {Pooling.CLS: "the first token's state", Pooling.POOLER: "the encoder's pooler"}
    if len(source.poolings) > 1 or source.poolings[0] not in names:
        words = source.given.features[0].name if source.given.recipe is None else str(source.given.recipe)
        return [f"its feature is {words}, and not the first token's state"]
    if source.given.recipe is not None and source.given.recipe.modules:
        return [f"its feature is the encoder's own vector ({source.given.recipe})"]
    if source.head.normalize or (source.head.dims is not None and source.head.dims.normalized):
        return ["it divides each vector by its length"]
    if not source.cuts_layers:
        return [f"its feature is of a layer inside, which a {source.kind} with fewer layers does not give"]
    return []


def load_code(file: Path) -> Any:
    """Run a Python file that an exporter wrote; return it as a module. No compiled file is left beside it."""
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)
    return module
