"""Options come from the settings: the same names, defaults and help in every command, and in its messages."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import typer
from headstart import cli
from headstart.cache.errors import spell_settings
from headstart.options import Fields, expand
from headstart.stages.progress import Note
from headstart.stages.settings import ExtractSettings, SpeedupSettings, SweepSettings, TableSettings, TrainSettings
from processes import fresh_command

GROUP: Any = typer.main.get_command(cli.app)
SETTINGS = (ExtractSettings, TrainSettings, SpeedupSettings)


def options_of(command: str) -> set[str]:
    return {option for parameter in GROUP.commands[command].params for option in parameter.opts}


@pytest.mark.parametrize("settings", SETTINGS)
def test_options_that_are_not_given_make_the_default_settings(settings: Any) -> None:
    parameters, collect = expand(Fields(settings), settings)
    assert collect({parameter.name: parameter.default for parameter in parameters}) == settings()


@pytest.mark.parametrize("settings", (*SETTINGS, SweepSettings))
def test_every_setting_has_a_help_text_that_names_others_rightly(settings: Any) -> None:
    for field in dataclasses.fields(settings):
        text = field.metadata["help"]
        assert text.endswith(".") and field.name in settings.__doc__
        if settings is TrainSettings:
            assert set(
                re.findall(r"--[a-z-]+", spell_settings(text, cli._spelling(GROUP, "train-head")))
            ) <= options_of("train-head")


def test_train_head_and_sweep_share_their_options() -> None:
    train, sweep = options_of("train-head"), options_of("sweep")
    assert (train - sweep, sweep - train) == ({"--fold"}, {"--rank-by", "--ray", "--workers", "--deadline"})


def test_an_option_takes_several_values_or_a_quantity() -> None:
    _, collect = expand(Fields(TrainSettings, only=("learning_rate", "memory"), lists=("learning_rate",)), dict)
    values = {"learning_rate": "0.1, 1e-2", "memory": "2GiB", "other": 1}
    assert collect(values) == {"learning_rate": (0.1, 0.01), "memory": 2 << 30}
    assert values == {"other": 1}


@pytest.mark.parametrize(("given", "delimiter"), [("tab", "\t"), (r"\t", "\t"), (";", ";"), (None, None)])
def test_a_tab_can_be_written_on_the_command_line(given: str | None, delimiter: str | None) -> None:
    _, collect = expand(Fields(TableSettings), TableSettings)
    values = {"delimiter": given, "quotes": None, "encoding": None, "header": None, "sheet": None}
    assert collect(values) == TableSettings(delimiter=delimiter)


@pytest.mark.parametrize(
    ("command", "message", "spelled"),
    [
        ("extract", "pass `overwrite=True`", "pass --overwrite"),
        ("train-head", "`learning_rate` is -1", "--lr is -1"),
        ("sweep", "`seeds` is 1,1", "--seed is 1,1"),
        ("extract", "or `label_column=None`", "or --no-labels"),
        ("extract", "pass `quotes=False`", "pass --no-quotes"),
        ("predict", "pass `header=True`", "pass --header"),
        ("repair", "pass `encoding='utf-16-le'`", "pass --encoding utf-16-le"),
        ("train-head", "`device=cpu`", "--device cpu"),
        ("repair", "check `table`", "check TABLE"),
        ("verify", "check `table`", "check --table"),
        ("predict", "extract again with `update=True`", "extract again with --update"),
        ("extract", "a model of type `own`", "a model of type `own`"),
        ("extract", "`block_rows=7` in Python", "`block_rows=7` in Python"),
    ],
)
def test_messages_spell_settings_as_options(command: str, message: str, spelled: str) -> None:
    assert spell_settings(message, cli._spelling(GROUP, command)) == spelled


def test_notes_spell_settings_as_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart import terminal
    from rich.console import Console

    parent = GROUP.make_context("headstart", ["repair", "c.h5", "t.csv"])
    ctx = GROUP.commands["repair"].make_context("repair", ["c.h5", "t.csv"], parent=parent)
    monkeypatch.setattr(terminal, "errors", Console(stderr=True, soft_wrap=True))
    with cli._reporting(ctx, quiet=False) as listener:
        listener(Note("extract the table with `overwrite=True`"))
    assert capsys.readouterr().err == "extract the table with --overwrite\n"


def test_the_version_is_printed() -> None:
    done = fresh_command("--version")
    assert done.returncode == 0 and re.fullmatch(r"headstart \d+\.\d+\S*\n", done.stdout)
