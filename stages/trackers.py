"""Trackers of experiments: what `train_head` and `sweep` have written goes to TensorBoard, MLflow or trackio as well.

They listen to the commands' events, and write when an outcome says that a folder is complete. Nothing is sent elsewhere
unless the user's MLFLOW_TRACKING_URI says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache.errors import HeadstartError, SettingsError, StorageError
from .progress import Action, Event, Outcome, Report, silent
from .runs.run import read_run
from .runs.sweep_folder import SWEEP, TABLE_FILE, WINNER
from .settings import Tracker

Scalar = str | int | float | bool
_MODULES = {Tracker.TENSORBOARD: "tensorboard", Tracker.MLFLOW: "mlflow", Tracker.TRACKIO: "trackio"}
_PROJECT = "headstart"
_MOST_CHARACTERS = 500  # of a hyperparameter, in MLflow
_BATCH = 800  # MLflow takes at most 1,000 values at a time
TENSORBOARD_FOLDER = "tensorboard"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What a tracker gets of one head."""

    name: str
    settings: Mapping[str, Scalar]
    epochs: Sequence[tuple[int, Mapping[str, float]]]
    """The number of each epoch, and its losses and scores."""
    metrics: Mapping[str, float]
    """The final ones, each with the bounds of its interval as ``NAME_low`` and ``NAME_high``."""
    tags: Mapping[str, str]


def log_to(
    *trackers: str, log_dir: str | os.PathLike[str] | None = None, report: Report = silent
) -> Callable[[Event], None]:
    """Return a listener for the ``report`` of `train_head` or `sweep`, which logs what they write.

    A run is one entry: its settings as hyperparameters, its epochs as steps, its final metrics with the bounds of their
    intervals, and tags that name encoder, feature and cache. A sweep is the entry of its winner, and one for each head.

    Args:
        trackers: ``tensorboard``, ``mlflow`` or ``trackio``.
        log_dir: The folder for TensorBoard's files, a folder for each run, and for MLflow's ``mlruns``. Without it
            TensorBoard's are in the run's own folder, and MLflow's where MLFLOW_TRACKING_URI says, or in ``mlruns``.
            trackio has a folder of its own: TRACKIO_DIR.
        report: Receives the events, too.

    Raises:
        SettingsError: there is no such tracker, or its library is not installed.
    """
    writers = []
    for name in trackers:
        try:
            tracker = Tracker(name)
        except ValueError:
            raise SettingsError(f"`log` is {name!r}; choose one of {', '.join(Tracker)}") from None
        _import(tracker)
        writers.append((tracker, _WRITERS[tracker]))
    folder = None if log_dir is None else Path(log_dir)

    def listen(event: Event) -> None:
        if isinstance(event, Outcome) and event.command in ("train-head", "sweep") and event.action is Action.MADE:
            entries = list(_entries(event))
            for tracker, write in writers:
                try:
                    write(event.output, entries, folder)
                except HeadstartError:
                    raise
                except Exception as error:  # whatever a tracker raises, the run is written
                    why = " ".join(str(error).split())
                    raise StorageError(f"{event.output} is complete, but {tracker} could not log it: {why}") from error
        report(event)

    return listen


def _import(tracker: Tracker) -> Any:
    """Import a tracker's library. It is told to send no reports of its use, and MLflow that a folder will do: its
    databases need more than mlflow-skinny."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_ALLOW_FILE_STORE"):
        os.environ.setdefault(name, "true")
    try:
        return importlib.import_module(_MODULES[tracker])
    except ImportError:
        raise SettingsError(f"`log={tracker}` needs a library: pip install 'headstart[{tracker}]'") from None


def _entries(outcome: Outcome) -> Iterator[Entry]:
    """The entry of a run, or of a sweep's winner and then of each head."""
    out = outcome.output
    if outcome.command == "train-head":
        yield _of_run(out, out.name)
        return
    yield _of_run(out / WINNER, out.name)
    import pyarrow.parquet

    names = [name for name, values in SWEEP.read(out)["settings"]["values"].items() if len(values) > 1]
    heads: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in pyarrow.parquet.read_table(out / TABLE_FILE).to_pylist():
        heads.setdefault((line["setting"], line["seed"], line["fold"]), []).append(line)
    measures = ("train_loss", "validation_loss", "validation_accuracy", "validation_macro_f1")
    for number, lines in enumerate(heads.values(), 1):
        best = next((line for line in lines if line["best"]), None)
        yield Entry(
            name=f"{out.name}-{number:04}",
            settings={name: _scalar(lines[0][name]) for name in ("setting", "seed", "fold", *names)},
            epochs=[(line["epoch"], _finite({name: line[name] for name in measures})) for line in lines],
            metrics={} if best is None else _finite({f"best_{name}": best[name] for name in measures}),
            tags={"sweep": out.name, "diverged": str(lines[0]["diverged"])},
        )


def _of_run(folder: Path, name: str) -> Entry:
    run = read_run(folder)
    choice = (run.get("search") or {}).get("choice") or {}
    settings = {**run["settings"], **{key: choice[key] for key in ("feature", "scaling", "l2") if key in choice}}
    metrics: dict[str, Any] = {}
    for part, scores in run["metrics"].items():
        for key, value in (scores or {}).items():
            if key.endswith("_interval") and value is not None:
                score = key.removesuffix("_interval")
                metrics |= {f"{part}_{score}_low": value[0], f"{part}_{score}_high": value[1]}
            elif isinstance(value, int | float):
                metrics[f"{part}_{key}"] = value
    history = [
        (each["epoch"], {key: value for key, value in each.items() if key != "epoch"}) for each in run["history"]
    ]
    return Entry(
        name=name,
        settings={key: _scalar(value) for key, value in settings.items()},
        epochs=[(epoch, _finite(values)) for epoch, values in history],
        metrics=_finite(metrics),
        tags={
            "headstart": run["headstart"],
            "task": run.get("task", "classes"),
            "encoder": run["encoder"]["name"],
            "feature": run["settings"]["feature"],
            "cache": Path(run["cache"]).name,
            "weights_sha256": run["identity"]["weights_sha256"],
        },
    )


def _scalar(value: Any) -> Scalar:
    return value if isinstance(value, str | int | float | bool) else "none" if value is None else str(value)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if value is not None}


def _to_tensorboard(out: Path, entries: Sequence[Entry], log_dir: Path | None) -> None:
    from torch.utils.tensorboard import SummaryWriter

    whole = out / TENSORBOARD_FOLDER if log_dir is None else log_dir / out.name
    for number, entry in enumerate(entries):
        with SummaryWriter(whole if not number else whole / f"{number:04}") as writer:
            for epoch, values in entry.epochs:
                for name, value in values.items():
                    writer.add_scalar(name, value, epoch)
            for name, words in entry.tags.items():
                writer.add_text(name, words)
            writer.add_hparams(dict(entry.settings), dict(entry.metrics), run_name=".")


def _to_mlflow(out: Path, entries: Sequence[Entry], log_dir: Path | None) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    place = None if os.environ.get("MLFLOW_TRACKING_URI") else Path("mlruns")
    place = place if log_dir is None else log_dir / "mlruns"
    client = MlflowClient(tracking_uri=None if place is None else place.absolute().as_uri())
    known = client.get_experiment_by_name(_PROJECT)
    experiment = client.create_experiment(_PROJECT) if known is None else known.experiment_id
    parent: str | None = None
    for entry in entries:
        tags = {**entry.tags, **({} if parent is None else {"mlflow.parentRunId": parent})}
        run = client.create_run(experiment, run_name=entry.name).info.run_id
        parent = parent or run
        metrics = [Metric(name, value, 0, epoch) for epoch, values in entry.epochs for name, value in values.items()]
        metrics += [Metric(name, value, 0, 0) for name, value in entry.metrics.items()]
        settings = [Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in entry.settings.items()]
        client.log_batch(run, params=settings, tags=[RunTag(name, value) for name, value in tags.items()])
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(run, metrics=metrics[start : start + _BATCH])
        client.set_terminated(run)


def _to_trackio(out: Path, entries: Sequence[Entry], log_dir: Path | None) -> None:
    trackio = _import(Tracker.TRACKIO)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how to show a dashboard, at each entry
        for entry in entries:
            config = {**entry.settings, **entry.tags}
            quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
            trackio.init(project=_PROJECT, name=entry.name, group=out.name, config=config, **quiet)
            for epoch, values in entry.epochs:
                trackio.log(dict(values), step=epoch)
            last = entry.epochs[-1][0] if entry.epochs else 0
            trackio.log(dict(entry.metrics), step=last)
            trackio.finish()


_WRITERS = {Tracker.TENSORBOARD: _to_tensorboard, Tracker.MLFLOW: _to_mlflow, Tracker.TRACKIO: _to_trackio}
