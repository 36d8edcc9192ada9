"""The encoder passes that a command did and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from headstart.cache.reader import open_cache
from headstart.stages.extract import extract
from headstart.stages.progress import Action, Outcome
from headstart.stages.runs.savings import passes_of_cached, passes_of_extraction
from headstart.stages.settings import ExtractSettings
from tiny import tiny_rows


def test_passes_are_counted_by_what_the_encoder_read(
    tiny: Path, tmp_path: Path, encoded: list[list[int]], write_csv: Callable[..., Path]
) -> None:
    rows = tiny_rows(100)
    settings = ExtractSettings(encoder=str(tiny), precision="float32")
    cache = extract(write_csv(rows), tmp_path / "c.h5", settings)
    record = open_cache(cache).record
    counts = {name: record[name] for name in ("sequences_encoded", "tokens_encoded")}
    made = Outcome(command="extract", output=cache, action=Action.MADE, counts=counts)
    passes = passes_of_extraction([record], [made])
    assert (passes.done, passes.saved) == (len(encoded), 100 - len(encoded))
    saved_tokens = record["tokens"] - sum(map(len, encoded))
    assert passes.saved_seconds == pytest.approx(saved_tokens / record["tokens_per_second"])
    assert record["measured_tokens"] == record["tokens_encoded"]
    more = extract(
        write_csv([("the film works", "class0"), *rows], "more.csv"), tmp_path / "more.h5", settings, reuse=[cache]
    )
    pooled = open_cache(more).record  # the speed of a few texts alone would mean little
    assert pooled["measured_tokens"] == record["tokens_encoded"] + pooled["tokens_encoded"] > record["tokens_encoded"]


RECORD = {"rows": 100, "tokens": 1000, "measured_tokens": 800, "measured_seconds": 2.0}


@pytest.mark.parametrize("action", [Action.CURRENT, Action.RELABELLED])
def test_a_cache_that_was_there_already_cost_nothing(action: Action) -> None:
    def outcome(action: Action) -> Outcome:
        counts = {"sequences_encoded": 80, "tokens_encoded": 800} if action is Action.MADE else {"rows": 100}
        return Outcome(command="extract", output=Path("c.h5"), action=action, counts=counts)

    passes = passes_of_extraction([RECORD], [outcome(action)])
    assert (passes.done, passes.saved, passes.saved_seconds) == (0, 100, pytest.approx(1000 / 400))
    both = passes_of_extraction([RECORD, RECORD], [outcome(Action.MADE), outcome(action)])
    assert (both.done, both.saved, both.saved_seconds) == (80, 120, pytest.approx(1200 / 400))


def test_work_on_cached_rows_saves_every_pass() -> None:
    passes = passes_of_cached(RECORD, 1000)
    assert (passes.done, passes.saved, passes.saved_seconds) == (0, 1000, pytest.approx(10 * 1000 / 400))
    assert passes_of_cached({**RECORD, "measured_seconds": 0.0}, 1000).saved_seconds is None
