"""What the command line shows: progress bars on a terminal, plain lines elsewhere, and summaries of results."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .cache.identity import computed_in
from .stages.baseline.report import measured_in, sections, title
from .stages.progress import Event, Note, Report, Step
from .stages.runs.results import MEASURES, SCORES
from .stages.runs.savings import EncoderPasses
from .stages.settings import Long
from .stages.units import duration, plain

if TYPE_CHECKING:
    from .stages.verify import Verified

console = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
PLAIN_SECONDS = 10.0
"""Seconds between two lines of progress where there is no terminal."""
MOST_CLASSES_SHOWN = 12
MOST_SETTINGS_SHOWN = 10
_TEXT_CELLS = 60
"""Cells of a terminal that a text gets in a table."""


@contextmanager
def reporting(spell: Callable[[str], str]) -> Iterator[Report]:
    """Give a listener that shows notes, and steps as progress bars on a terminal or as lines elsewhere.

    Args:
        spell: Returns a note with its settings spelled as options.
    """
    if errors.is_terminal:
        columns = [TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.fields[count]}")]
        with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as progress:
            yield _Bars(progress, spell)
    else:
        yield _Lines(spell)


class _Bars:
    """Shows one bar for each phase."""

    def __init__(self, progress: Progress, spell: Callable[[str], str]) -> None:
        self._progress, self._spell = progress, spell
        self._phases: dict[str, tuple[Any, float]] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self._progress.console.print(plain(self._spell(event.text)), markup=False)
        if not isinstance(event, Step):
            return
        if event.phase not in self._phases:
            task = self._progress.add_task(event.phase, total=event.total or None, count="")
            self._phases[event.phase] = task, time.monotonic()
        task, started = self._phases[event.phase]
        if event.done < self._progress.tasks[task].completed:  # the same phase again, for the next table or cache
            self._progress.reset(task)
            started = time.monotonic()
            self._phases[event.phase] = task, started
        count = event.words(time.monotonic() - started)
        self._progress.update(task, completed=event.done, total=event.total or None, count=count)


class _Lines:
    """Prints a line every ten seconds in a phase that takes longer."""

    def __init__(self, spell: Callable[[str], str]) -> None:
        self._spell = spell
        self._phase, self._started, self._printed, self._first = "", 0.0, 0.0, 0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Note):
            errors.print(plain(self._spell(event.text)), markup=False)
        elif not isinstance(event, Step):
            return
        elif event.phase != self._phase:
            self._phase, self._started, self._printed = event.phase, now, now
            self._first = event.done  # the units that an earlier run finished took no time in this one
        elif now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            elapsed = now - self._started
            done, to_do = event.done - self._first, event.total - event.done
            left = f", {duration(elapsed * to_do / done)} left" if event.total and done > 0 else ""
            errors.print(f"{event.phase}: {event.words(elapsed)}{left}", markup=False)


def show_summary(title: str, lines: Mapping[str, str]) -> None:
    """Print a title, and lines of a name and a value in two columns."""
    console.print(plain(title), style="bold", markup=False)
    width = max(map(len, lines))
    for name, value in lines.items():
        console.print(f"  {name:<{width}}  {plain(value)}", markup=False)


def show_cache(cache: Mapping[str, Any]) -> None:
    """Print what a cache holds, and how it was made, as `inspect_path` returns it."""
    record, identity, rows = cache["record"], cache["identity"], cache["rows"]
    columns = ", ".join(f"{name} ({rows:,} x {width})" for name, width in cache["features"].items())
    recipe = record["encoder"].get("model")
    texts, sequences = record["distinct_texts"], record["distinct_sequences"]
    lines = {
        "encoder": f"{record['encoder']['name']}, weights sha256 {identity['weights_sha256'][:12]}…",
        "rows": f"{rows:,}, with {texts:,} distinct texts and {sequences:,} distinct token sequences",
        "features": f"{columns}, stored as {cache['storage']}",
        **({"model": f"the model's own: {recipe}, {identity['max_length']} tokens"} if recipe else {}),
        "labels": "none",
        **_long_texts(cache),
        **_precision(cache),
        "tokens": f"{record['tokens']:,}, of which {record['tokens_encoded']:,} were encoded",
        "batches": f"{cache['plan']['path']}, about {cache['plan']['batch_tokens']:,} tokens each",
        "speed": "nothing was encoded",
        "time": f"{duration(record['seconds'])}, {duration(record['encode_seconds'])} of it in the encoder",
        "file": decimal(cache["bytes"]) + (f", in {len(cache['shards']):,} shards" if cache["shards"] else ""),
    }
    if cache["label_rows"] is not None:
        shown = [f"{name} {count:,}" for name, count in list(cache["label_rows"].items())[:MOST_CLASSES_SHOWN]]
        more = ", …" if len(cache["label_rows"]) > len(shown) else ""
        kinds = {"multi-label": "any number a row: ", "ordinal": "from the least to the greatest: "}
        kind = kinds.get(cache["label_kind"], "")
        what = "more than one set of labels" if cache["label_kind"] == "multi-label" else "more than one label"
        lines["labels"] = f"{kind}{', '.join(shown)}{more}; {record['conflicting_texts']:,} texts have {what}"
    elif cache["label_range"] is not None:
        least, mean, most = cache["label_range"]
        several = f"{record['conflicting_texts']:,} texts have more than one"
        lines["labels"] = f"numbers from {least:g} to {most:g}, on average {mean:g}; {several}"
    if record["tokens_per_second"] is not None:
        lines["speed"] = f"{record['tokens_per_second']:,.0f} tokens/s on {record['machine']['device']}"
    if identity["prefix"]:
        lines["prefix"] = repr(identity["prefix"])
    if record["reused_rows"]:
        lines["reused"] = f"{record['reused_rows']:,} rows were copied from other caches"
    if record["halved_batches"]:
        lines["memory"] = f"{record['halved_batches']:,} batches did not fit in memory, and were encoded in halves"
    if record["kept_blocks"]:
        lines["resumed"] = f"{record['kept_blocks']:,} blocks of {cache['block_rows']:,} rows were finished before"
    if record["skipped_rows"]:
        lines["skipped"] = f"{record['skipped_rows']:,} bad rows"
    show_summary(cache["path"], lines)


def _precision(cache: Mapping[str, Any]) -> dict[str, str]:
    """What the encoder of a cache computed in, and how far from float32 that is, where this was measured."""
    record, identity = cache["record"], cache["identity"]
    kind, alike = computed_in(identity["precision"], identity["quantization"]), record.get("likeness")
    lines = {"precision": f"{kind}: {record['precision_reason']}"}
    found = [alike.get(name) for name in ("median", "lowest", "texts")] if isinstance(alike, dict) else [None]
    if all(isinstance(value, int | float) for value in found):  # of a file that may come from anyone
        middle, lowest, count = found
        lines["int8"] = f"cosine with float32: {middle:.4f} in the middle, {lowest:.4f} at the least, of {count} texts"
    return lines


def _long_texts(cache: Mapping[str, Any]) -> dict[str, str]:
    """What was done with the texts of a cache that have more tokens than its encoder reads."""
    record, identity, rows = cache["record"], cache["identity"], cache["rows"]
    truncated, length = record["truncated_rows"], identity["max_length"]
    if identity["long"] == Long.CHUNKS:
        split = record.get("split_rows", 0)
        chunks = f"{record.get('sequences', rows) - rows + split:,} chunks of up to {length} tokens"
        shared = f"two of a text share {identity['overlap']}, {identity['chunk_pooling']} of their vectors"
        return {"chunks": f"{split:,} texts ({split / rows:.1%}) in {chunks}; {shared}"}
    if identity["long"] == Long.HEAD_TAIL:
        return {"head-tail": f"{truncated:,} texts ({truncated / rows:.1%}) to their first and last, {length} tokens"}
    side = ", their beginnings" if identity["truncation_side"] == "left" else ""
    return {"truncated": f"{truncated:,} texts ({truncated / rows:.1%}) at {length} tokens{side}"}


def show_array(arguments: Sequence[str], out: Path, *, shards: int, left: Sequence[int]) -> None:
    """Show a script for SLURM, which makes one shard of a cache in each task.

    Args:
        arguments: Those of the `headstart` that makes a shard, but for ``--shard``.
        out: The joined cache.
        shards: How many shards it has.
        left: The numbers of those that are to be made, in order. Where there are none, that is said instead.
    """
    if not left:
        errors.print(
            plain(f"{out} is current: all shards are made and joined; there is nothing to hand in"), markup=False
        )
        return
    runs: list[list[int]] = []
    for number in left:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    tasks = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    command = shlex.join([sys.executable, "-m", "headstart", *arguments])
    lines = [
        "#!/bin/sh",
        f"# Makes {len(left):,} of {shards:,} shards of {plain(str(out))}, one in each task; the last one joins them.",
        "# Hand it in with what your cluster asks for, such as: sbatch --gres=gpu:1 --time=4:00:00 SCRIPT",
        "#SBATCH --job-name=headstart",
        f"#SBATCH --array={tasks}",
        "set -eu",
        f"cd {shlex.quote(str(Path.cwd()))}",
        f'exec {command} --shard "$SLURM_ARRAY_TASK_ID/{shards}"',
    ]
    print(*lines, sep="\n")


def show_verified(found: Verified) -> None:
    """Print what was checked in a cache that has no damage."""
    lines = {
        "whole": f"{found.rows:,} rows, {decimal(found.bytes)}: all checksums are correct, all features are finite"
    }
    if found.encoded and found.largest_difference is not None:
        lines["encoder"] = (
            f"{found.encoded:,} rows encoded again: the largest difference is {found.largest_difference:.1e}, "
            "relative to the largest value of the row"
        )
    show_summary(str(found.path), lines)


def show_run(run: Mapping[str, Any]) -> None:
    """Print how a head was trained, its metrics on the test rows, and their confusion matrix."""
    test, rows = run["metrics"]["test"], run["rows"]
    task = run.get("task", "classes")  # runs made earlier lack it
    lines = {
        **({} if task == "classes" else {"task": task}),
        "features": run["settings"]["feature"],
        "rows": f"{rows['train']:,} for training, {rows['validation']:,} for validation, {rows['test']:,} for testing",
    }
    if found := run.get("search"):
        lines |= _search(found, rows)
    if dims := run.get("dims"):
        again = ", divided by their length again" if dims["normalized"] else ""
        lines["dims"] = f"the first {dims['dims']:,} of {dims['of']:,} numbers of each vector{again}"
    if run["history"]:
        lines |= _epochs(run)
    if certificate := run.get("certificate"):
        lines |= _convergence(certificate)
    lines |= _scores(test, " on the test rows")
    if "calibration_error" in test:
        temperature = "" if run["temperature"] == 1 else f", at temperature {run['temperature']:.3f}"
        if calibration := run.get("calibration"):
            temperature = f", calibrated: {calibration['method']}{temperature}"
        bounds = test.get("calibration_error_interval")
        error = f" (95%: {_interval(bounds)})" if bounds else ""
        lines["calibration"] = f"expected error {test['calibration_error']:.4f}{error}{temperature}"
    if prior := run.get("prior"):
        shares = ", ".join(f"{plain(name)} {share:.3g}" for name, share in list(prior["expected"].items())[:5])
        lines["prior"] = f"{shares}; the test rows have the shares of the table"
    if decision := run.get("decision"):
        held = f"precision {decision['validation_precision']:.4f}, recall {decision['validation_recall']:.4f}"
        label, threshold = plain(decision["label"]), decision["threshold"]
        lines["threshold"] = f"{label} from probability {threshold:.4f} on; on the validation rows {held}"
    work = f"for {len(run['history'])} epochs" if run["history"] else "in the solver"
    lines["time"] = f"{duration(run['seconds'])}, {duration(run['fit_seconds'])} of it {work}"
    show_summary(run["path"], lines)
    show_confusion(run["label_names"], test)


def _scores(metrics: Mapping[str, Any], on: str) -> dict[str, str]:
    """The metrics of some rows with their intervals; the first says of which rows."""
    lines = {}
    for name, key in SCORES.items():
        if metrics.get(key) is not None:
            bounds = metrics.get(f"{key}_interval")
            lines[name] = f"{metrics[key]:.4f}{on}" + (f" (95%: {_interval(bounds)})" if bounds else "")
            on = ""
    return lines


def show_evaluation(found: Mapping[str, Any]) -> None:
    """Print the metrics of a head on new rows, how far these are from those of training, and the worst of them."""
    rows, drift = found["rows"], found["drift"]
    seen = rows["seen_evaluated"]
    shared = "" if seen is None else f", the texts of {seen:,} were in training"
    lines = {"rows": f"{rows['evaluated']:,} of {found['source']}{shared}", **_scores(found["metrics"], "")}
    if "calibration_error" in found["metrics"]:
        error = _interval(found["metrics"]["calibration_error_interval"])
        lines["calibration"] = f"expected error {found['metrics']['calibration_error']:.4f} (95%: {error})"
    if before := _scores(found["test_metrics"], ""):
        name, value = next(iter(before.items()))
        lines["training"] = f"{name} {value} on the test rows of training"
    if drift is not None:
        told = f"{drift['texts']:,} texts told from {drift['texts_of_training']:,} of training"
        lines["drift"] = f"{drift['auc']:.4f} (95%: {_interval(drift['auc_interval'])}): {told}; 0.5 is by chance"
    lines["time"] = duration(found["seconds"])
    show_summary(found.get("path") or found["run"], lines)
    show_confusion(found["label_names"], found["metrics"])
    if not found["worst"]:
        return
    texts = [_short(" / ".join(filter(None, (line["text"], line["text_pair"])))) for line in found["worst"]]
    width = max(map(cell_len, texts))
    table = [["row", "label", "prediction", "loss", *([set_cell_size("text", width)] if width else [])]]
    for line, text in zip(found["worst"], texts, strict=True):
        said = [_label(line["label"]), _label(line["prediction"]), f"{line.get('loss', line.get('error')):.4g}"]
        table.append([str(line["row"]), *said, *([set_cell_size(text, width)] if width else [])])
    show_rows(table)


def _label(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value


def show_audit(audit: Mapping[str, Any]) -> None:
    """Print how many rows of each kind an audit found, and the worst of them."""
    rows, head, issues, settings = audit["rows"], audit["head"], audit["issues"], audit["settings"]
    share = issues["label-error"] / max(rows["judged"], 1)
    confused = [f"{pair['label']} as {pair['suggested']} {pair['rows']:,}" for pair in audit["confusions"][:4]]
    dims = f", the first {settings['dims']:,} numbers" if settings.get("dims") else ""
    lines = {
        "features": settings["feature"] + dims,
        "rows": f"{rows['audited']:,} with {rows['texts']:,} distinct token sequences; {rows['judged']:,} were judged "
        f"by heads of {settings['folds']} folds",
        "heads": f"l2 {head['l2']:g}: accuracy {head['accuracy']:.4f}, log loss {head['log_loss']:.4f}",
        "labels": f"{issues['label-error']:,} likely errors ({share:.1%}), by {settings['prune']}"
        + (f": {', '.join(confused)}" if confused else ""),
        "copies": f"{issues['duplicate']:,} rows have a text that has another label elsewhere; "
        f"{issues['near-duplicate']:,} are near one (cosine of at least {settings['similarity']:g})",
        "outliers": f"{issues['outlier']:,} rows far from all classes",
    }
    if settings["next"]:
        lines["next"] = f"{audit['next']:,} of {rows['pool']:,} texts of {audit['pool']}, in next.parquet"
    lines["time"] = duration(audit["seconds"])
    show_summary(audit["path"], lines)
    if not audit["worst"]:
        return
    texts = [_short(" / ".join(filter(None, (line.get("text"), line.get("text_pair"))))) for line in audit["worst"]]
    width = max(map(cell_len, texts))
    table = [
        ["kind", "row", "label", "suggested", "score", "partner", *([set_cell_size("text", width)] if width else [])]
    ]
    for line, text in zip(audit["worst"], texts, strict=True):
        partner = "" if line["partner_row"] is None else f"{line['partner_row']} {line['partner_label']}"
        known = "" if line["suggested"] is None else f"{line['suggested']} {line['suggested_probability']:.3f}"
        cells = [line["kind"], str(line["row"]), line["label"], known, f"{line['score']:.4g}", partner]
        table.append([*cells, *([set_cell_size(text, width)] if width else [])])
    show_rows(table)


def show_export(export: Mapping[str, Any]) -> None:
    """Print what an export is, and how it compares with headstart."""
    compared, names = export["compared"], export["label_names"]
    labels = "" if compared["equal"] is None else f", {compared['equal']:,} of them with the same label"
    lines = {
        "format": export["to"] + (", weights in 8-bit integers" if export["int8"] else ""),
        "encoder": export["encoder"],
        "labels": ", ".join(names[:MOST_CLASSES_SHOWN]) + ("" if len(names) <= MOST_CLASSES_SHOWN else ", …"),
        "compared": f"{compared['texts']:,} texts{labels}; logits differ by at most {compared['difference']:.1e}",
        "to load": "see its README.md",
    }
    show_summary(export["path"], lines if names else {**lines, "labels": "numbers"})


def _short(text: str) -> str:
    """The beginning of a text, in one line."""
    text = plain(" ".join(text.split()))
    return text if cell_len(text) <= _TEXT_CELLS else set_cell_size(text, _TEXT_CELLS - 1) + "…"


def show_speedup(report: Mapping[str, Any]) -> None:
    """Print the tables of a speedup report, and their notes."""
    console.print(plain(report["path"]), style="bold", markup=False)
    console.print(f"  {plain(title(report))}", markup=False)
    for section in sections(report):
        console.print(f"\n{section.heading}", style="bold", markup=False)
        if section.rows:
            show_rows(section.rows)
        for note in section.notes:
            console.print(f"- {plain(note)}", markup=False)
    console.print(f"\n{measured_in(report)}", markup=False)


def show_passes(passes: EncoderPasses) -> None:
    """Print the encoder passes that a command did and saved: the last line of a command."""
    worth = "; no speed was measured while the cache was made"
    if passes.saved_seconds is not None:
        speed = f"{passes.tokens_per_second:,.0f} tokens/s"
        worth = f", which would have taken {duration(passes.saved_seconds)} at the measured {speed}"
    console.print(f"Encoder passes: {passes.done:,} done, {passes.saved:,} saved{worth}.", markup=False)


def _epochs(run: Mapping[str, Any]) -> dict[str, str]:
    last, best = run["history"][-1], run["history"][run["best_epoch"] - 1]
    return {
        "last": f"epoch {last['epoch']}: training loss {last['train_loss']:.4f}, {_validated(last)}",
        "best": f"epoch {best['epoch']}: {_validated(best)}",
    }


def _validated(epoch: Mapping[str, Any]) -> str:
    accuracy = epoch["validation_accuracy"]  # numbers have none
    return f"validation loss {epoch['validation_loss']:.4f}" + (
        "" if accuracy is None else f", accuracy {accuracy:.4f}"
    )


def _search(found: Mapping[str, Any], rows: Mapping[str, int]) -> dict[str, str]:
    """What a search chose among what; and how many rows it chose by, which it trained on as well if they are folds."""
    by_folds = f"{rows['train']:,} for training"
    by_folds += f", {found['rows']:,} of them in {found['folds']} folds" if found["folds"] else ""
    lines = {} if rows["validation"] else {"rows": f"{by_folds}, {rows['test']:,} for testing"}
    if choice := found["choice"]:
        among = f"among {len(found['candidates']):,}: feature {choice['feature']}"
        scaling = "" if choice["scaling"] == "none" else f", {choice['scaling']}"
        folds = "" if not found["folds"] else f", folds {choice['lowest']:.4f} to {choice['highest']:.4f}"
        by = f"{found['metric']} {choice['mean']:.4f}{' by leave-one-out' * found['leave_one_out']}{folds}"
        lines["chosen"] = f"{among}{scaling}, penalty {choice['l2']:.3g} ({by})"
    return lines


def _convergence(certificate: Mapping[str, Any]) -> dict[str, str]:
    state = "converged" if certificate["converged"] else "NOT converged"
    return {
        "objective": f"{certificate['objective']:.4f} at l2 {certificate['l2']:g}, at most about "
        f"{certificate['gap']:.1e} above its minimum; gradient {certificate['gradient_norm']:.1e}",
        "solver": f"{state} in {certificate['iterations']} iterations, {certificate['passes']} passes: "
        f"{certificate['reason']}",
    }


def show_sweep(sweep: Mapping[str, Any]) -> None:
    """Print the best settings of a sweep, with means and standard deviations over seeds and folds."""
    ranking, settings = sweep["ranking"], sweep["settings"]
    seeds, folds = len(settings["seeds"]), settings["base"]["folds"]
    over = f"{seeds} seed{'s' if seeds > 1 else ''}" + (f" x {folds} folds" if folds else "")
    diverged = f", {sweep['diverged']:,} of which diverged" if sweep["diverged"] else ""
    lines = {
        "heads": f"{sweep['heads']:,}: {len(ranking):,} settings x {over}{diverged}",
        "ranked by": f"{settings['rank_by']} on validation rows"
        + ("; ± is the standard deviation over seeds and folds" if seeds > 1 or folds else ""),
        "time": duration(sweep["seconds"]),
    }
    if sweep["kept_heads"]:
        lines["resumed"] = f"{sweep['kept_heads']:,} heads were finished before"
    show_summary(sweep["path"], lines)
    varied = [name for name, values in settings["values"].items() if len(values) > 1]
    names = [name for name in MEASURES if name in ranking[0]]
    rows = [["rank", *(MEASURES[name] for name in names), *(name.replace("_", " ") for name in varied)]]
    for place, line in enumerate(ranking[:MOST_SETTINGS_SHOWN], 1):
        measures = ["diverged" if line["diverged"] else _with_spread(line[name]) for name in names]
        values = [line["values"][name] for name in varied]
        rows.append([str(place), *measures, *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)])
    show_rows(rows)
    if len(ranking) > MOST_SETTINGS_SHOWN:
        console.print(f"  and {len(ranking) - MOST_SETTINGS_SHOWN:,} more, in sweep.json", markup=False)


def _with_spread(measure: Mapping[str, float | None]) -> str:
    return f"{measure['mean']:.4f}" + ("" if measure["spread"] is None else f" ± {measure['spread']:.4f}")


def show_rows(rows: list[list[str]]) -> None:
    """Print rows in columns: the first column is aligned to the left, the others to the right."""
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        rest = [" " * (width - cell_len(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True)]
        console.print("  " + "  ".join([set_cell_size(row[0], widths[0]), *rest]), markup=False)


def show_confusion(names: list[str], metrics: Mapping[str, Any]) -> None:
    """Print a confusion matrix where there is one, and the precision and recall of each class, unless these are too
    many."""
    if "per_class" not in metrics:
        return
    matrix = metrics.get("confusion_matrix")  # rows with several labels have none
    if len(names) > MOST_CLASSES_SHOWN or (matrix is None and "micro_f1" not in metrics):
        console.print(f"{len(names)} classes: run.json holds the precision and recall of each")
        return
    if matrix is None:
        scores = metrics["per_class"]
        columns = ("precision", "recall", "f1")
        body = [[name, f"{scores[name]['rows']:,}", *(f"{scores[name][key]:.3f}" for key in columns)] for name in names]
        show_rows([["label", "rows", *columns], *body])
        return
    rows = [["true \\ predicted", *names, "precision", "recall"]]
    for name, counts in zip(names, matrix, strict=True):
        scores = metrics["per_class"][name]
        rows.append([name, *(f"{n:,}" for n in counts), f"{scores['precision']:.3f}", f"{scores['recall']:.3f}"])
    show_rows(rows)


def show_predictions(texts: list[str], labels: list[Any], names: tuple[str, ...], probabilities: Any) -> None:
    """Print the prediction and the probabilities of each text."""
    for text, prediction, row in zip(texts, labels, probabilities, strict=True):
        line = " ".join(text.split())
        shown = line if len(line) <= 72 else line[:71] + "…"
        top = sorted(zip(row, names, strict=True), reverse=True)[:MOST_CLASSES_SHOWN]
        label = ", ".join(prediction) if isinstance(prediction, list) else str(prediction)
        # Tabs can be pasted into a table. rich would turn them into spaces.
        print(*map(plain, (label, "  ".join(f"{name} {p:.3f}" for p, name in top), shown)), sep="\t")


def _interval(bounds: list[float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"
