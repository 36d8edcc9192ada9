"""The command line, as a person or a script uses it: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import inspect_absurd
from headstart.cache.reader import open_cache
from headstart.cache.siblings import partial_path
from headstart.stages.settings import ExtractSettings, TrainSettings, parse_memory
from headstart.stages.units import plain
from processes import Command, command, command_here, fresh_command, start
from tiny import save_tiny_encoder, tiny_rows


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table, and its cache and run, made by commands in new processes; and the output of the commands."""
    folder = tmp_path_factory.mktemp("made")
    table = folder / "table.jsonl"
    table.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in tiny_rows(200)))
    cache, run = folder / "cache.h5", folder / "run"
    extracted = fresh_command("extract", table, "--encoder", tiny, "--out", cache, "--precision", "float32")
    trained = fresh_command("train-head", cache, "--out", run, "--solver", "sgd", "--epochs", 5)
    assert (extracted.returncode, trained.returncode) == (0, 0), extracted.stderr + trained.stderr
    return {"table": table, "cache": cache, "run": run, "extracted": extracted.stdout, "trained": trained.stdout}


def test_the_main_job_end_to_end(made: dict[str, Any]) -> None:
    extracted, trained = made["extracted"], made["trained"]
    assert re.search(r"rows +200, with \d+ distinct texts and \d+ distinct token sequences", extracted)
    for fact in (
        "features +cls \\(200 x 32\\)",
        "labels +class0",
        "truncated +0 texts",
        "precision +float32: as asked for",
    ):
        assert re.search(fact, extracted), fact
    assert re.search(r"speed +[\d,]+ tokens/s", extracted) and re.search(r"file +\S+ [kM]B", extracted)
    assert re.search(r"accuracy +\d\.\d{4} on the test rows \(95%: ", trained)
    assert "true \\ predicted" in trained and "precision" in trained
    books = r"Encoder passes: {} done, {} saved, which would have taken .* at the measured [\d,]+ tokens/s\.\n$"
    assert re.search(books.format(r"\d+", r"\d+"), extracted) and re.search(books.format(0, "[1-9][0-9,]*"), trained)
    files = ["head.safetensors", "predictions.parquet", "run.json"]
    assert sorted(path.name for path in made["run"].iterdir()) == files


def test_a_second_extract_says_that_the_cache_is_current(made: dict[str, Any], tiny: Path) -> None:
    again = command_here("extract", made["table"], "--encoder", tiny, "--out", made["cache"], "--precision", "float32")
    assert again.returncode == 0 and "is current" in again.stderr
    assert re.fullmatch(r"Encoder passes: 0 done, 200 saved, which would have taken .*\n", again.stdout)


def test_quiet_says_nothing(made: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    first = command_here("extract", made["table"], "--encoder", tiny, "--out", tmp_path / "c.h5", "--quiet")
    second = command_here(
        "train-head", tmp_path / "c.h5", "--out", tmp_path / "run", "--solver", "sgd", "--epochs", 2, "--quiet"
    )
    assert [(c.returncode, c.stdout, c.stderr) for c in (first, second)] == [(0, "", "")] * 2


def test_inspect_shows_caches_and_runs(made: dict[str, Any]) -> None:
    assert "cls (200 x 32)" in command_here("inspect", made["cache"]).stdout
    assert "on the test rows" in command_here("inspect", made["run"]).stdout
    cache = json.loads(command_here("inspect", made["cache"], "--json").stdout)
    assert (cache["kind"], cache["rows"], cache["identity"]["max_length"]) == ("cache", 200, 128)
    assert sum(cache["label_rows"].values()) == 200
    run = json.loads(command_here("inspect", made["run"], "--json").stdout)
    assert (run["kind"], run["settings"]["epochs"]) == ("run", 5)


def assert_one_line(done: Command, code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert re.fullmatch(f"headstart: .*{message}.*\n", done.stderr), done.stderr
    assert done.stdout == ""


def test_a_users_mistake_is_one_line_and_exit_code_2(made: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "c.h5"]
    (tmp_path / "blank.csv").write_text("text,label\nfine,x\n ,y\n")
    (tmp_path / "rare.csv").write_text("text,label\nfine,x\ngood,x\nbad,y\n")
    (tmp_path / "not.h5").write_text("text")
    encoder = ["--encoder", tiny]
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("extract", tmp_path / "none.csv", *out, *encoder), "none.csv does not exist"),
        (("extract", made["table"], *out, *encoder, "--text-column", "body"), "table.jsonl has no column 'body'"),
        (("extract", tmp_path / "blank.csv", *out, *encoder), "blank.csv, row 2: its text .* is blank"),
        (("extract", made["table"], *out, "--encoder", "no-such-encoder"), "encoder no-such-encoder is not on"),
        (
            ("extract", made["table"], "--out", made["cache"], *encoder, "--max-length", 9),
            "holds something else: max_len",
        ),
        (("extract", made["table"], *out, *encoder, "--device", "cuda:7"), "device 'cuda:7' cannot be used here"),
        (("train-head", tmp_path / "none.h5", *out), "none.h5 does not exist"),
        (("train-head", tmp_path / "not.h5", *out), "not.h5 is not a headstart cache"),
        (("train-head", made["cache"], "--out", made["run"]), "run exists already"),
        (("train-head", made["cache"], *out, "--solver", "sgd", "--dropout", 1), "--dropout is 1.0; it must be"),
        (("train-head", made["cache"], *out, "--solver", "sgd", "--lr", -1), "--lr is -1.0; it must be"),
        (("train-head", made["cache"], *out, "--label-column", "x"), "--label-column has no effect without --labels"),
        (
            ("train-head", made["cache"], *out, "--test", made["cache"], "--test-fraction", 0.5),
            "--test-fraction has no effect with --test",
        ),
        (
            ("extract", made["table"], *out, *encoder, "--no-labels", "--label-column", "x"),
            "--label-column has no effect with --no-labels",
        ),
        (
            ("speedup", made["table"], *out, *encoder, "--no-quality", "--seed", 1),
            "--seed has no effect with --no-quality",
        ),
        (("verify", made["cache"], "--sample", 9), "--sample has no effect without --encoder"),
        (
            (
                "train-head",
                made["cache"],
                *out,
                *("--test", made["cache"], "--validation", made["cache"], "--split-seed", 1),
            ),
            "--split-seed has no effect with both --test and --validation",
        ),
        (("predict", made["run"], "a good film", "--text-column", "x"), "--text-column has no effect without --input"),
        (("predict", tmp_path, "good film"), "is not a run"),
        (("predict", made["run"], " "), "text 1 is blank"),
        (("predict", made["run"]), "give either texts, or a table"),
        (("inspect", tmp_path / "none.h5"), "does not exist"),
    ]
    for number, (arguments, message) in enumerate(cases):  # one in a process of its own; all end in the same lines
        assert_one_line((command_here if number else command)(*arguments), 2, message)
    assert not (tmp_path / "c.h5").exists()
    command_here("extract", tmp_path / "rare.csv", *out, *encoder, "--quiet")
    rare = command_here("train-head", tmp_path / "c.h5", "--out", tmp_path / "run", "--solver", "sgd")
    assert_one_line(rare, 2, "the label 'y' has one distinct text only")
    assert not (tmp_path / "run").exists()


def test_what_the_parser_refuses_is_exit_code_2(made: dict[str, Any]) -> None:
    for arguments in (("extract",), ("train-head", made["cache"]), ("no-such-command",), ("extract", "t", "--nope")):
        done = command_here(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_machines_fault_is_one_line_and_exit_code_1(made: dict[str, Any], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.h5"
    content = bytearray(made["cache"].read_bytes())
    damaged.write_bytes(content[: len(content) * 2 // 3])
    assert_one_line(command_here("train-head", damaged, "--out", tmp_path / "run"), 1, "cut short")


def test_ctrl_c_ends_with_130_and_is_carried_on_from(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    table, out = write_csv(tiny_rows(20_000)), tmp_path / "c.h5"
    arguments = ["extract", table, "--encoder", tiny, "--out", out, "--batch-tokens", 64]
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )
    while not partial_path(out).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in printed and "Traceback" not in printed
    assert not out.exists() and partial_path(out).exists()


def test_progress_is_plain_lines_where_there_is_no_terminal(made: dict[str, Any]) -> None:
    assert "\x1b" not in made["extracted"] + made["trained"]


def test_help_shows_the_defaults_of_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(command_here("extract", "--help").stdout.split())
    settings = ExtractSettings()
    for option, default in [
        ("--encoder", r"\(none: it must be given\)"),
        ("--features", ",".join(settings.features)),
        ("--max-length", r"\(as the encoder's files say, else 128\)"),
        ("--precision", settings.precision.value),
        ("--storage", settings.storage.value),
        ("--text-column", settings.text_column),
    ]:
        assert re.search(rf"{option} .*?\[default: {default}\]", shown), option
    shown = " ".join(command_here("train-head", "--help").stdout.split())
    train = TrainSettings()
    for option, value in [("--lr", train.learning_rate), ("--epochs", train.epochs), ("--dropout", train.dropout)]:
        assert re.search(rf"{option} .*?\[default: {value}\]", shown), option
    assert re.search(r"--solver \S+ .*?\[default: auto\]", shown)


def test_names_of_classes_are_shown_as_they_are(tiny: Path, tmp_path: Path) -> None:
    rows = [(text, "[/bold] :smile:" if label == "class0" else "[red]") for text, label in tiny_rows(60)]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows))
    command_here("extract", table, "--encoder", tiny, "--out", tmp_path / "c.h5", "--quiet")
    shown = command_here("train-head", tmp_path / "c.h5", "--out", tmp_path / "run", "--solver", "sgd", "--epochs", 2)
    assert shown.returncode == 0, shown.stderr
    assert "[/bold] :smile:" in shown.stdout and "[red]" in shown.stdout
    ascii_only = fresh_command("inspect", tmp_path / "c.h5", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ascii_only.returncode == 0, ascii_only.stderr


def test_an_architecture_without_a_fast_path_is_encoded_by_its_own(tmp_path: Path) -> None:
    """The summary says so."""
    import torch
    import transformers

    folder = save_tiny_encoder(tmp_path / "rembert", kind="rembert")
    texts = ["a good film", "not a bad phone at all", "broke"]
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{text},x\n" for text in texts))
    options = ("--encoder", folder, "--out", tmp_path / "c.h5", "--precision", "float32")
    done = command_here("extract", tmp_path / "t.csv", *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"batches +padded, about", done.stdout)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0] for text in texts]
    np.testing.assert_allclose(open_cache(tmp_path / "c.h5").features(), torch.stack(states).numpy(), atol=1e-5)


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    assert plain("\x1b[2J\r\n\u202eabc 酒店 👩‍💻\t") == "\\x1b[2J\\r\\n\\u202eabc 酒店 👩‍💻\\t"


def test_a_full_memory_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch
    from headstart import cli
    from headstart.stages import inspect

    on_a_cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), on_a_cpu):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inspect, "inspect_path", raising(error))
            patch.setattr(sys, "argv", ["headstart", "inspect", str(tmp_path)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
        assert stop.value.code == 1
        assert "the memory is full" in capsys.readouterr().err


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def test_damaged_labels_are_not_counted(made: dict[str, Any], tmp_path: Path) -> None:
    from headstart.cache.layout import read_layout

    path = tmp_path / "c.h5"
    content = bytearray(made["cache"].read_bytes())
    content[read_layout(made["cache"])[1]["labels"].offset + 5] = 1
    path.write_bytes(content)
    assert_one_line(command_here("inspect", path), 1, "its labels are damaged")


def test_absurd_values_in_a_run_are_one_line(made: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(made["run"], tmp_path / "run")
    assert inspect_absurd(tmp_path / "run", "run.json") > 100


def test_a_sweep_prints_its_ranking_and_its_winner_predicts(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    options = [
        "--solver",
        "sgd",
        "--lr",
        "0.1,0.01",
        "--dropout",
        "0,0.3",
        "--seed",
        "0,1",
        "--folds",
        2,
        "--epochs",
        3,
    ]
    done = command_here("sweep", made["cache"], "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"heads +16: 4 settings x 2 seeds x 2 folds", done.stdout)
    assert re.search(r"rank +log loss +accuracy +macro F1 +average precision +learning rate +dropout", done.stdout)
    assert len(re.findall(r"^  [1-4] +\d\.\d{4} ± \d\.\d{4} ", done.stdout, re.MULTILINE)) == 4
    assert "on the test rows" in done.stdout and "\x1b" not in done.stdout
    assert command_here("predict", out / "winner", "good film").returncode == 0
    assert "rank " in command_here("inspect", out).stdout
    found = json.loads(command_here("inspect", out, "--json").stdout)
    assert (found["kind"], len(found["ranking"])) == ("sweep", 4)
    assert inspect_absurd(out, "sweep.json") > 20
    again = command_here("sweep", made["cache"], "--out", out, *options)
    assert_one_line(again, 2, "runs exists already")
    quiet = command_here("sweep", made["cache"], "--out", out, *options, "--overwrite", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_every_kind_of_head_is_trained_shown_and_loaded(made: dict[str, Any], tmp_path: Path) -> None:
    cases: list[tuple[tuple[Any, ...], str]] = [
        (
            ("--solver", "sgd", "--head", "mlp", "--hidden", 8, "--standardize", "--schedule", "cosine", "--epochs", 5),
            "last +epoch 5",
        ),
        (("--solver", "exact", "--l2", 0.5, "--calibrate"), r"solver +converged in \d+ iterations"),
        (
            ("--solver", "sgd", "--class-weight", "balanced", "--label-smoothing", 0.1, "--patience", 2, "--epochs", 5),
            "best +epoch",
        ),
        (
            ("--labels", made["table"], "--memory", "64MiB", "--folds", 3),
            r"chosen +among \d+: feature cls, .*penalty \S+ \(log-loss \d\S+, folds \S+ to \S+\)",
        ),
    ]
    for number, (options, fact) in enumerate(cases):
        out = tmp_path / str(number)
        done = command_here("train-head", made["cache"], "--out", out, *options)
        assert done.returncode == 0, done.stderr
        assert re.search(fact, done.stdout), done.stdout
        assert re.search(r"log loss +\d", done.stdout) and re.search(r"weighted F1 +\d", done.stdout)
        assert command_here("predict", out, "good film").returncode == 0


def test_mistakes_of_stage_two_are_one_line(made: dict[str, Any], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("train-head", made["cache"], *out, "--memory", "lots"), "--memory is 'lots'; write it as 2GiB"),
        (("train-head", made["cache"], *out, "--memory", "1KB"), "--memory is 1000; it must be at least 16 MiB"),
        (("train-head", made["cache"], *out, "--solver", "exact", "--head", "mlp"), "linear for the exact solver"),
        (("train-head", made["cache"], *out, "--l2", 2), "--l2 has no effect without --solver exact"),
        (("train-head", made["cache"], *out, "--hidden", 64), "--hidden has no effect without --solver sgd"),
        (
            ("train-head", made["cache"], *out, "--solver", "exact", "--epochs", 9),
            "--epochs has no effect without --solver sgd",
        ),
        (
            ("sweep", made["cache"], *out, "--solver", "exact", "--no-center"),
            "--center/--no-center has no effect without --solver sgd",
        ),
        (
            ("train-head", made["cache"], *out, "--solver", "sgd", "--folds", 3, "--validation-fraction", 0.5),
            "--validation-fraction has no effect with --folds",
        ),
        (
            ("train-head", made["cache"], *out, "--keep-shared"),
            "--keep-shared has no effect without --test or --validation",
        ),
        (
            ("train-head", made["cache"], *out, "--solver", "sgd", "--folds", 2, "--fold", 3),
            "--fold is 3; it must be between 1 and 2",
        ),
        (("train-head", made["cache"], *out, "--labels", tmp_path / "no.csv"), "no.csv does not exist"),
        (("sweep", made["cache"], *out, "--lr", "0.1,x"), "--lr is '0.1,x'; write values with commas"),
        (("sweep", made["cache"], *out, "--class-weight", "heavy"), "'heavy'; .* such as none, balanced"),
        (("sweep", made["cache"], *out, "--seed", "1.5"), "--seed is '1.5'; .* such as 0,1,2"),
        (("train-head", made["cache"], *out, "--folds", 2, "--validation", made["cache"]), "choose one of them"),
        (("sweep", made["cache"], *out, "--solver", "exact", "--lr", "0.1"), "--lr has no effect without --solver sgd"),
        (("sweep", made["cache"], *out, "--features", "cls,mean"), "holds no feature 'mean'"),
        (("sweep", made["cache"], *out, "--folds", 300), "cannot be divided into 300 folds"),
    ]
    for number, (arguments, message) in enumerate(cases):  # one in a process of its own; all end in the same lines
        assert_one_line((command_here if number else command)(*arguments), 2, message)
        assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_a_sweep_with_130_and_it_is_carried_on(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    seeds = ",".join(map(str, range(40)))
    arguments = ["sweep", made["cache"], "--out", out, "--solver", "sgd", "--seed", seeds, "--epochs", "200"]
    process = start(arguments, tmp_path / "log")
    while not list((tmp_path / "runs.headstart-partial").glob("groups/0*.json")):
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join()
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 130
    assert "finished groups of heads are kept" in printed and "Traceback" not in printed
    assert not out.exists()
    done = command_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed +[1-9]\d* heads were finished before", done.stdout)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("2GiB", 2 << 30), ("256 MiB", 256 << 20), ("500MB", 500_000_000), ("1073741824", 1 << 30)]
)
def test_sizes_are_read_as_people_write_them(text: str, bytes_: int) -> None:
    assert parse_memory(text) == bytes_
