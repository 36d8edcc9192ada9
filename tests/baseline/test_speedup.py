"""The speedup report: it shows what was run, projects only from that, and guesses nothing that did not fit."""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import inspect_absurd
from headstart.cache.errors import OutputExistsError, SettingsError
from headstart.stages.baseline import ladder as ladder_module
from headstart.stages.baseline.ladder import Ladder, Measurement, Rung, Sample, Spread, measure_stages, scale
from headstart.stages.baseline.process import ProcessKilledError, in_new_process
from headstart.stages.baseline.program import Padding, Program, ProgramEpoch, ProgramSettings, SentimentClassifier
from headstart.stages.baseline.quality import AGREE, Training, compare_quality
from headstart.stages.baseline.report import draw, sections
from headstart.stages.encoders.files import find_encoder
from headstart.stages.extract import extract
from headstart.stages.inspect import inspect_path
from headstart.stages.progress import Action, Event, Note, Outcome
from headstart.stages.settings import Precision, SpeedupSettings, parse_duration
from headstart.stages.speedup import paid_off_after, speedup
from headstart.stages.train_head import train_head
from hypothesis import given
from hypothesis import strategies as st
from processes import command_here, serve
from programs import Faulty, program_of, train
from tiny import tiny_rows

pytestmark = [
    # What torch rightly says of 4 workers on 2 cores, and of pinned memory without a GPU.
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"),
]
Report = dict[str, Any]
ROWS = 336
"""Of the table; of its 306 distinct texts 100 train, the fewest whose heads are compared."""


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """The server of this file's processes is that of all tests."""
    serve()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speedup") / "table.csv"
    rows = list(dict(tiny_rows(500, classes=3)).items())
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows[:306], *rows[: ROWS - 306]])
    return path


UNGUARDED = "import sys\nfrom headstart.__main__ import main\nprint('began', file=sys.stderr)\nmain()\n"


@pytest.fixture(scope="module")
def made(tiny: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, made by the command, which a script without a guard runs: `UNGUARDED`."""
    out = tmp_path_factory.mktemp("report") / "out"
    options = ["--encoder", tiny, "--out", out, "--budget", "4min", "--repeats", 2, "--max-length", 32, "--epochs", 3]
    script = out.with_name("script.py")
    script.write_text(UNGUARDED)
    command = [sys.executable, script, "speedup", table, *options, "--seed", 0]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (out / "began").write_text(done.stderr)
    (out / "printed").write_text(done.stdout)
    return out


def report_of(folder: Path) -> Report:
    fields: Report = json.loads((folder / "speedup.json").read_text())
    return fields


def test_every_rung_is_measured_in_the_order_of_the_advice(made: Path) -> None:
    report = report_of(made)
    assert [rung["rung"] for rung in report["rungs"]] == [rung.value for rung in Rung]
    for rung in report["rungs"]:
        assert rung["epoch"]["low"] <= rung["epoch"]["median"] <= rung["epoch"]["high"], rung
        assert rung["rows"] > 0 and rung["not_run"] is None
    stages = report["stages"]
    assert stages["whole"] and stages["rows"] == ROWS
    assert stages["extract"]["median"] > 0 and stages["epoch"]["median"] > 0


def test_absurd_values_in_a_report_are_one_line(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "speedup.json", tmp_path)
    assert inspect_absurd(tmp_path, "speedup.json") > 100


def test_a_rung_changes_the_last_that_made_the_program_faster(made: Path) -> None:
    rungs = report_of(made)["rungs"]
    last = None
    for rung in rungs:
        assert rung["over"] == last
        last = rung["rung"] if rung["kept"] else last
    kept = [rung["rung"] for rung in rungs if rung["kept"]]
    for rung in rungs:
        settings = rung["settings"]
        names = [rung["rung"] for rung in rungs]
        followed = {name for name in kept if names.index(name) < names.index(rung["rung"])} | {rung["rung"]}
        assert (settings["batch_size"] == 16) == (Rung.BATCH in followed)
        assert settings["frozen"] == (Rung.FROZEN in followed)
        assert (settings["precision"] == "bfloat16") == (Rung.PRECISION in followed)
        assert (settings["workers"] == 4) == (Rung.WORKERS in followed)
        assert settings["pinned"] == (Rung.PINNED in followed)


def test_totals_follow_from_what_was_measured(made: Path) -> None:
    report = report_of(made)
    medians = {rung["rung"]: rung["epoch"]["median"] for rung in report["rungs"]}
    lines = {line["way"]: line for line in report["totals"]}
    extract_, epoch, run = (report["stages"][name]["median"] for name in ("extract", "epoch", "experiment"))
    besides = run - 3 * epoch  # seconds of an experiment apart from its epochs
    for way, median in medians.items():
        assert lines[way]["seconds"] == pytest.approx(10 * (report["program_start"] + 3 * median))
        for name, once in (("paid_off_after", extract_), ("ahead_with_cache_after", 0.0)):
            after = lines[way][name]
            assert once + besides + after * epoch <= report["program_start"] + after * median
            before = after - 1
            assert after == 1 or once + besides + before * epoch > report["program_start"] + before * median
    runs = 10 * report["stages"]["experiment"]["median"]
    assert lines["headstart"]["seconds"] == pytest.approx(extract_ + runs)
    assert lines["headstart, the cache there already"]["seconds"] == pytest.approx(runs)
    assert lines["headstart, its own epochs"]["epochs"] == 100


def test_terminal_and_markdown_show_the_same_table(made: Path) -> None:
    printed, page = (made / "printed").read_text(), (made / "speedup.md").read_text()
    for section in sections(report_of(made)):
        for row in section.rows:
            assert "| " + " | ".join(row) + " |" in page
            assert all(cell in printed for cell in row)
            assert any(all(cell in line for cell in row) for line in printed.splitlines())
        assert all(note in page and note in printed for note in section.notes)
    assert re.search(r"Measured in .* s of a budget of 4 min 0 s\.", printed)
    assert "seconds" in (made / "speedup.json").read_text()


def test_the_picture_is_a_png(made: Path) -> None:
    assert (made / "speedup.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert inspect_path(made)["kind"] == "speedup"


def measurement_of(settings: SpeedupSettings, scratch: Path) -> Measurement:
    return Measurement(
        settings=settings,
        files=find_encoder(settings.encoder),
        device=torch.device("cpu"),
        scratch=scratch,
        deadline=math.inf,
        on_step=lambda detail: None,
        extract_command=extract,
        train_command=train_head,
    )


def sample_of(texts: list[str], labels: list[str], *, few: int) -> Sample:
    names, rows = tuple(sorted(set(labels))), len(texts)
    return Sample(texts=texts, labels=labels, names=names, few=few, table="", table_rows=rows, table_texts=rows)


def test_the_loop_with_the_encoder_in_eval_and_the_cache_give_the_same_head(
    minilm: Path, vader: list[dict[str, str]], tmp_path: Path
) -> None:
    """On real weights and text. The program as written trains another head, with dropout in its encoder."""
    chosen = [vader[number] for number in np.random.default_rng(0).permutation(len(vader))[:100]]
    sample = sample_of([row["text"] for row in chosen], [row["label"] for row in chosen], few=32)
    settings = SpeedupSettings(
        encoder=str(minilm), epochs=2, quality_train=32, quality_test=48, quality_length=32, seeds=(1,)
    )
    quality = compare_quality(measurement_of(settings, tmp_path), sample)
    assert (quality.train_rows, quality.test_rows, quality.length, quality.not_run) == (32, 48, 32, None)
    assert [(head.seed, head.training) for head in quality.trained] == [(1, training) for training in Training]
    written, clean, cached, _ = quality.trained
    assert clean.difference is not None and clean.difference <= AGREE
    assert (clean.accuracy, clean.low, clean.high) == (cached.accuracy, cached.low, cached.high)
    assert written.epochs == clean.epochs == cached.epochs <= 2
    assert written.difference is None and cached.difference is None
    assert quality.agree
    assert not dataclasses.replace(quality, trained=(dataclasses.replace(clean, difference=2e-4),)).agree
    assert not dataclasses.replace(quality, trained=()).agree
    assert all(head.low <= head.accuracy <= head.high for head in quality.trained)


def test_the_encoder_is_noisy_only_where_the_program_leaves_its_dropout_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The heads of the comparison are trained on the same features in every epoch, or on others each time."""
    settings = SpeedupSettings(
        encoder=str(tiny), epochs=1, quality_train=64, quality_test=64, quality_length=16, seeds=(0,)
    )
    features: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    original = SentimentClassifier.encode

    def encode(self: SentimentClassifier, batch: Any, *, frozen: bool) -> torch.Tensor:
        encoded = original(self, batch, frozen=frozen)
        assert frozen and not encoded.requires_grad
        features[self.bert.training].append(encoded)
        return encoded

    monkeypatch.setattr(SentimentClassifier, "encode", encode)
    texts = [f"a good film {number}" for number in range(192)]
    compare_quality(measurement_of(settings, tmp_path), sample_of(texts, ["bad", "good"] * 96, few=10))
    clean = torch.cat(features[False])
    noise = torch.cdist(torch.cat(features[True]), clean).min(dim=1).values
    assert len(features[True]) >= 3 and noise.min() > 1e-2


def test_what_does_not_fit_is_left_out_and_never_guessed(tiny: Path, table: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    settings = SpeedupSettings(encoder=str(tiny), budget=0.01, max_length=32)
    out = speedup(table, tmp_path / "out", settings, report=events.append)
    report = report_of(out)
    assert all(rung["epoch"] is None and rung["not_run"] for rung in report["rungs"])
    assert report["stages"]["not_run"] and report["stages"]["extract"] is None
    assert report["totals"] == [] and report["quality"]["trained"] == [] and report["quality"]["not_run"]
    page = (out / "speedup.md").read_text()
    assert page.count("not run") >= 2 * len(Rung)
    assert not re.search(r"\d (ms|s) \|", page)
    outcome = Outcome(command="speedup", output=out, action=Action.MADE, counts={"rows": ROWS})
    assert events[-1] == outcome and not any(isinstance(event, Outcome) for event in events[:-1])


def test_a_batch_that_takes_longer_than_its_share_is_not_run(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    ladder = ladder_of(tiny, seconds={False: 2.0, True: 0.01}, monkeypatch=monkeypatch)
    start, batch, frozen = ladder.climb([Rung.START, Rung.BATCH, Rung.FROZEN], time.perf_counter() + 1.5)
    assert start.epoch is None and batch.epoch is None
    assert start.not_run is not None
    assert re.fullmatch(r"it needs 6\.0 s at least, and its share of the budget was \d+ ms", start.not_run)
    assert batch.kept and frozen.epoch is not None and frozen.over is None
    assert frozen.settings.batch_size == 16  # larger batches are followed though they could not be timed


def test_mixed_precision_that_could_not_be_timed_is_followed_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    for pays in (True, False):
        ladder = ladder_of(tiny, seconds={False: 2.0, True: 0.01}, monkeypatch=monkeypatch, half_pays=pays)
        precision, frozen, workers = ladder.climb(
            [Rung.PRECISION, Rung.FROZEN, Rung.WORKERS], time.perf_counter() + 1.5
        )
        assert precision.epoch is None and precision.kept == pays
        assert frozen.settings.precision == ("bfloat16" if pays else "float32")
        assert workers.over is Rung.FROZEN


def test_workers_are_not_kept_where_nothing_tells_whether_they_help(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    ladder = ladder_of(tiny, seconds={False: 0.01, True: 0.01}, monkeypatch=monkeypatch)
    workers, pinned = ladder.climb([Rung.WORKERS, Rung.PINNED], time.perf_counter() + 2)
    assert workers.epoch is not None and workers.over is None and not workers.kept
    assert pinned.settings.workers == 0 and pinned.settings.pinned


def test_a_rung_that_the_memory_is_too_small_for_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    ladder = ladder_of(tiny, seconds={False: 0.01, True: 0.01}, monkeypatch=monkeypatch)
    train = Program.train

    def full(self: Program, settings: ProgramSettings, *arguments: Any) -> ProgramEpoch:
        if settings.batch_size == 16 and not settings.frozen:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return train(self, settings, *arguments)

    monkeypatch.setattr(Program, "train", full)
    start, batch, frozen = ladder.climb([Rung.START, Rung.BATCH, Rung.FROZEN], time.perf_counter() + 2)
    assert start.epoch is not None and frozen.epoch is not None
    assert batch.not_run == "the memory is full"


def test_what_a_sample_took_is_scaled_to_the_whole_table(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    """A batch of 8 takes 0.01 s, so 1,000 rows take 1.25 s; the time of the start is not multiplied."""
    ladder = ladder_of(tiny, seconds={False: 0.01, True: 0.01}, start=0.05, monkeypatch=monkeypatch)
    (rung,) = ladder.climb([Rung.START], time.perf_counter() + 0.2)
    assert rung.rows < 160 and rung.epoch is not None
    assert rung.epoch.median == pytest.approx(0.05 + 1000 / 8 * 0.01)


def test_advice_that_slows_the_program_down_is_taken_back(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    """The rung and the rung that it changes are both timed twice before the advice is taken back."""
    ladder = ladder_of(tiny, seconds={False: 0.01, True: 0.002}, monkeypatch=monkeypatch, slow_workers=3.0, repeats=2)
    climbed = ladder.climb([Rung.FROZEN, Rung.WORKERS, Rung.PINNED], time.perf_counter() + 2)
    frozen, workers, pinned = climbed
    assert frozen.epoch is not None and workers.epoch is not None
    assert frozen.epoch.repeats >= 2 and workers.epoch.repeats == 2
    assert workers.epoch.median == pytest.approx(3 * frozen.epoch.median)
    assert workers.over is Rung.FROZEN and not workers.kept and workers.settings.workers == 4
    assert pinned.over is Rung.FROZEN and pinned.settings.workers == 0 and pinned.settings.pinned


def test_workers_that_cannot_start_cost_their_rung_alone(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    ladder = ladder_of(tiny, seconds={False: 0.01, True: 0.01}, monkeypatch=monkeypatch, slow_workers=None)
    workers, pinned = ladder.climb([Rung.WORKERS, Rung.PINNED], time.perf_counter() + 2)
    assert workers.not_run == "workers cannot run here: unable to open shared memory object"
    assert pinned.epoch is not None and pinned.settings.workers == 0


def ladder_of(
    tiny: Path,
    *,
    seconds: dict[bool, float],
    monkeypatch: pytest.MonkeyPatch,
    start: float = 0.0,
    slow_workers: float | None = 1.0,
    repeats: int = 1,
    half_pays: bool = True,
) -> Ladder:
    """A ladder for a table of 1,000 rows, whose work runs in this process and whose times are invented.

    Args:
        tiny: The encoder.
        seconds: Seconds of a batch, with a frozen encoder and without.
        monkeypatch: Replaces `Program.train`.
        start: Seconds that each epoch takes to start.
        slow_workers: How many times as long a batch takes with workers; None where workers cannot start.
        repeats: Repeats of a rung.
        half_pays: Whether mixed precision pays.
    """

    def train(self: Program, settings: ProgramSettings, batches: list[list[int]]) -> ProgramEpoch:
        if settings.workers and slow_workers is None:
            raise RuntimeError("unable to open shared memory object")
        slow = slow_workers if settings.workers and slow_workers else 1.0
        took = start + slow * seconds[settings.frozen] * len(batches)
        return ProgramEpoch(start=start, seconds=took, loss=1.0, accuracy=0.5)

    monkeypatch.setattr(Program, "train", train)
    program = program_of(tiny, 160)
    _ = program.model  # loading it takes none of the ladder's time
    return Ladder(
        measurement=measurement_of(SpeedupSettings(encoder=str(tiny), repeats=repeats), Path()),
        make=lambda: program,
        apart=lambda work, on_tick: work(),
        precision=Precision.BFLOAT16 if half_pays else Precision.FLOAT32,
        table_rows=1000,
    )


def test_the_program_runs_in_a_process_of_its_own_which_reports_its_faults(tiny: Path) -> None:
    ticks = itertools.count()

    def run(batch_size: int, batches: list[list[int]]) -> ProgramEpoch:
        make = functools.partial(program_of, tiny, 8, kind=Faulty)
        work = functools.partial(train, make, ProgramSettings(batch_size=batch_size), batches)
        return in_new_process(work, [Ladder.__module__], functools.partial(next, ticks))[0]

    with pytest.warns(UserWarning, match="as a loader warns"):
        first, second = run(8, [[0], [1]]), run(8, [[0]])
    assert (first.accuracy, second.accuracy) == (2, 1) and next(ticks) > 0
    assert len({os.getpid(), first.loss, second.loss}) == 3
    with pytest.raises(MemoryError, match="not enough memory"):
        run(16, [[0]])
    with pytest.raises(RuntimeError, match="an odd batch"):
        run(17, [[0]])
    with pytest.raises(ProcessKilledError, match="its process was killed"):
        run(9, [[0]])
    for epoch in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(int(epoch.loss), 0)


def test_a_process_is_ended_where_its_work_is_no_longer_wanted(tiny: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        in_new_process(functools.partial(time.sleep, 60), [Ladder.__module__], interrupt)
    assert time.perf_counter() - before < 30


def test_a_process_that_the_system_kills_costs_its_rung_alone(tiny: Path) -> None:
    make = functools.partial(program_of, tiny, 160, kind=Faulty)
    apart = functools.partial(in_new_process, modules=[Ladder.__module__])
    for batch_size, reason in ((9, "its process was killed"), (16, "the memory is full")):
        with pytest.MonkeyPatch.context() as patch:
            changes: dict[Rung, Any] = {rung: {"batch_size": batch_size} for rung in Rung}
            patch.setattr(ladder_module, "advice", lambda device, changes=changes: changes)
            measurement = measurement_of(SpeedupSettings(encoder=str(tiny), repeats=1), Path())
            ladder = Ladder(
                measurement=measurement, make=make, apart=apart, precision=Precision.BFLOAT16, table_rows=1000
            )
            with warnings.catch_warnings(action="ignore"):
                rungs = ladder.climb([Rung.BATCH, Rung.FROZEN], time.perf_counter() + 60)
        assert [(rung.not_run or "")[: len(reason)] for rung in rungs] == [reason, reason]


def test_a_script_without_a_guard_may_call_it(made: Path) -> None:
    """`multiprocessing` runs the main script again in each new process, unless the script is hidden from it."""
    assert (made / "began").read_text().count("began") == 1
    assert report_of(made)["rungs"][0]["epoch"] is not None


@pytest.mark.parametrize(("kind", "workers"), [("forkserver", 0), ("forkserver", 2), ("spawn", 1)])
def test_in_a_process_of_its_own_the_program_is_the_same(
    tiny: Path, workers: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", kind])
    make = functools.partial(program_of, tiny, 40, seed=0)
    settings = ProgramSettings(frozen=True, workers=workers, noisy=False, padding=Padding.BATCH)
    batches = make().batches(settings, np.arange(40))
    expected = train(make, settings, batches, times=2)
    work = functools.partial(train, make, settings, batches, times=2)
    epochs = in_new_process(work, [Ladder.__module__, "transformers.models.bert.modeling_bert"], lambda: None)
    assert [(e.loss, e.accuracy) for e in epochs] == [(pytest.approx(e.loss, rel=1e-4), e.accuracy) for e in expected]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_program_trains_what_its_rung_says(tiny: Path, workers: int) -> None:
    torch.manual_seed(0)  # the head's start, and dropout
    program = program_of(tiny, 40)
    frozen, trained = ProgramSettings(frozen=True, workers=workers), ProgramSettings(batch_size=16, workers=workers)
    for settings in (frozen, trained):
        before = {name: tensor.clone() for name, tensor in program.model.state_dict().items()}
        counter = itertools.count()
        batches = program.batches(settings, np.arange(40))
        took = program.train(settings, batches, functools.partial(next, counter))
        assert next(counter) == len(batches) == math.ceil(40 / settings.batch_size)
        assert 0 < took.start < took.seconds
        assert 0.2 < took.loss < 2 and 0 <= took.accuracy <= 1  # of a head that knows little: log(2) is 0.7
        moved = {name for name, tensor in program.model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert "fc.weight" in moved
        assert any(name.startswith("bert.encoder") for name in moved) == (not settings.frozen)
        assert program.model.bert.training  # as train() leaves it


def test_the_best_form_pads_within_a_batch_and_is_free_of_noise(tiny: Path) -> None:
    program = program_of(tiny, 64)
    best = ProgramSettings(batch_size=4, frozen=True, padding=Padding.BATCH, noisy=False)
    batches = program.batches(best, np.arange(64))
    assert sorted(row for batch in batches for row in batch) == list(range(64))
    shapes = [batch["input_ids"].shape for batch in program.loader(best, batches)]
    assert all(rows * longest <= 4 * 32 for rows, longest in shapes)
    assert sum(rows * longest for rows, longest in shapes) == program.padded_tokens(best, batches)
    assert program.padded_tokens(best, batches) < program.padded_tokens(ProgramSettings(), batches) / 2
    program.train(best, batches)
    assert not program.model.bert.training


def test_a_whole_table_that_does_not_fit_is_scaled_from_a_sample(tiny: Path, tmp_path: Path) -> None:
    texts, labels = zip(*tiny_rows(500, classes=3), strict=True)
    sample = sample_of(list(texts), list(labels), few=64)
    sample = dataclasses.replace(sample, table_rows=10**9, table_texts=10**9)
    settings = SpeedupSettings(encoder=str(tiny), repeats=2, max_length=32, epochs=3)
    stages = measure_stages(measurement_of(settings, tmp_path), sample, share=60.0)
    assert stages.extract and stages.extract_start and stages.epoch and stages.experiment
    assert (stages.rows, stages.whole, stages.extract.repeats) == (500, False, 2)
    assert stages.extract.median > 1000 * stages.extract_start > 0
    assert stages.experiment.median > 3 * stages.epoch.median > 0
    few = measure_stages(measurement_of(settings, tmp_path), sample, share=0.0)
    assert few.extract is None and few.not_run and few.not_run.startswith("a sample takes ")


def test_a_missing_library_costs_the_picture_alone(
    tiny: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    notes: list[str] = []
    settings = SpeedupSettings(encoder=str(tiny), budget=0.01, max_length=32)
    out = speedup(
        table, tmp_path / "out", settings, report=lambda e: notes.append(e.text) if isinstance(e, Note) else None
    )
    assert sorted(path.name for path in out.iterdir()) == ["speedup.json", "speedup.md"]
    assert any("pip install 'headstart[report]'" in note for note in notes)
    assert not draw(tmp_path / "p.png", {})


def test_only_a_report_is_ever_replaced(tiny: Path, table: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    settings = SpeedupSettings(encoder=str(tiny), budget=0.01, max_length=32)
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="exists already" if not overwrite else "is not a speedup report"):
            speedup(table, foreign, settings, overwrite=overwrite)
    out = speedup(table, tmp_path / "out", settings)
    with pytest.raises(OutputExistsError, match="exists already"):
        speedup(table, out, settings)
    assert speedup(table, out, settings, overwrite=True) == out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "out"]


def test_ctrl_c_leaves_nothing_behind(tiny: Path, table: Path, tmp_path: Path) -> None:
    command = ["speedup", table, "--encoder", tiny, "--out", tmp_path / "out", "--budget", "60s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in printed and "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "soon"], "--budget is 'soon'; write it as 120s or 10min"),
        (["--budget", "0s"], "--budget is 0.0; it must be above 0"),
        (["--seed", "1,1"], "is 1,1; it must be distinct numbers of at least 0"),
        (["--epochs", "0"], "epochs is 0; it must be at least 1"),
        (["--label-column", "stars"], "has no column 'stars'"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    tiny: Path, table: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    done = command_here("speedup", table, "--encoder", tiny, "--out", tmp_path / "out", *options)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("120s", 120), ("10min", 600), ("1.5h", 5400), ("90", 90), ("2 min", 120)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_budget_is_finite() -> None:
    with pytest.raises(SettingsError, match="budget"):
        SpeedupSettings(budget=math.inf)


seconds = st.floats(1e-3, 1e5)


@given(seconds, seconds, seconds)
def test_extracting_has_paid_for_itself_at_the_first_epoch_that_is_no_dearer(
    once: float, epoch: float, other: float
) -> None:
    after = paid_off_after(once=once, epoch=epoch, other_epoch=other)
    if after is None:
        assert epoch >= other
        return
    slack = 1e-6 * (once + after * (epoch + other))
    assert once + after * epoch <= after * other + slack
    assert once + (after - 1) * epoch >= (after - 1) * other - slack


@given(seconds, seconds, st.floats(1, 1e4))
def test_more_work_takes_longer_but_starts_once(start: float, rest: float, factor: float) -> None:
    assert scale(start + rest, start=start, factor=factor) == pytest.approx(start + rest * factor, rel=1e-6)
    assert scale(start / 2, start=start, factor=factor) == start


@given(st.lists(seconds, min_size=1, max_size=9))
def test_a_spread_is_the_median_and_the_range(values: list[float]) -> None:
    spread = Spread.of(values)
    assert (spread.low, spread.high, spread.repeats) == (min(values), max(values), len(values))
    assert spread.median == pytest.approx(float(np.median(values)))
