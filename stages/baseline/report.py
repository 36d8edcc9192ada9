"""A speedup report as tables, for the terminal and for Markdown, and as a picture. Plain values in.

The one module that imports matplotlib, which is an extra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runs.folders import FolderKind
from ..units import duration

SPEEDUP = FolderKind(
    name="speedup report",
    file="speedup.json",
    format="headstart-speedup",
    version=1,
    command="headstart speedup",
    others=r"speedup\.(md|png)",
)
EXTRACT, TRAIN_HEAD = "headstart: extract, once", "headstart: train-head"
_PROGRAM, _OURS = "#8d99ae", "#1b6ca8"  # colours of the picture


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: a heading, the rows of a table with the header first (or none), and sentences."""

    heading: str
    rows: list[list[str]]
    notes: list[str]


def title(report: Mapping[str, Any]) -> str:
    """Return one line: the encoder, the table and the machine."""
    table, tokens, machine = report["table"], report["settings"]["max_length"], report["machine"]
    rows = f"{table['rows']:,} rows ({table['distinct_texts']:,} distinct texts), at most {tokens} tokens"
    return f"{report['encoder']['name']} on {rows}; {machine['device']}, {machine['cores']} cores"


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the parts of the report: an epoch, all experiments, quality."""
    return [_epochs(report), _totals(report), _quality(report)]


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as a page."""
    text = f"{title(report)}\n"
    for section in sections(report):
        text += f"\n## {section.heading}\n\n"
        if section.rows:
            lines = [section.rows[0], ["---"] * len(section.rows[0]), *section.rows[1:]]
            text += "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
        text += "".join(f"- {note}\n" for note in section.notes)
    return f"{text}\n{measured_in(report)}\n"


def measured_in(report: Mapping[str, Any]) -> str:
    """Return one line: the time of the whole measurement."""
    return f"Measured in {duration(report['seconds'])} of a budget of {duration(report['settings']['budget'])}."


def _epochs(report: Mapping[str, Any]) -> Section:
    rungs, stages, precision = report["rungs"], report["stages"], report["precision"]
    medians = {rung["rung"]: rung["epoch"]["median"] for rung in rungs if rung["epoch"]}
    last = next((rung["rung"] for rung in reversed(rungs) if rung["epoch"] and rung["kept"]), None)
    ours = {"over": last, "kept": True, "rows": stages["rows"], "not_run": None}
    ways = [*rungs, {"rung": EXTRACT, "epoch": stages["extract"], **ours}]
    ways += [{"rung": TRAIN_HEAD, "epoch": stages["epoch"], **ours}]
    rows = [["rung", "an epoch takes", "repeats", "over the start", "over the last kept", "rows timed"]]
    notes = [f"headstart was not run: {stages['not_run']}."] if stages["not_run"] else []
    for way in ways:
        if way["not_run"]:
            followed = "; the next rungs follow it all the same" if way["kept"] else ""
            notes.append(f"{way['rung']} was not run: {way['not_run']}{followed}.")
        if way["epoch"] is None:
            rows.append([way["rung"], "not run", "", "", "", ""])
            continue
        own = way["epoch"]["median"]
        cells = [duration(own), _repeats(way["epoch"]), _ratio(medians.get(rungs[0]["rung"]), own)]
        gain = _ratio(medians.get(way["over"]), own) + ("" if way["kept"] or not way["over"] else ", taken back")
        timed = f"{way['rows']:,}" + (", all of them" if way["rows"] == report["table"]["rows"] else "")
        rows.append([way["rung"], *cells, gain, timed])
    notes += [
        "Each repeat of a rung ran in a process of its own, after a first batch that is not timed, on as many rows as "
        "its share of the budget allowed. Its time is scaled to the whole table by padded tokens; what an epoch costs "
        "whatever its length (starting workers) counts once. Times are medians of the repeats.",
        "An epoch of the program trains on every row. Its test after each epoch, and saving, are left out, which "
        "favours it. An epoch of headstart is scaled to every row too, and includes its validation.",
        "Each rung changes the last one that was kept, and so do headstart's two. A rung that made the program slower, "
        "by its fastest repeat, is taken back; a gain within the range of the repeats is none. The last rung batches "
        "rows by length, with as many padded tokens in a batch as before, and turns off dropout in the encoder.",
        f"headstart computes in {precision['chosen']} here: {precision['reason']}. Its start (loading the encoder) is "
        + ("part of the measured time." if stages["whole"] else "counted once; the rest is scaled by distinct texts."),
    ]
    return Section("An epoch over the whole table", rows, notes)


def _totals(report: Mapping[str, Any]) -> Section:
    settings, lines = report["settings"], report["totals"]
    rows = [["way", "epochs", "all experiments take", "over the start", "extracting has paid for itself after"]]
    rows[0] += ["with the cache there already, after"]
    start = next((line["seconds"] for line in lines if line["way"] == report["rungs"][0]["rung"]), None)
    for line in lines:
        cells = [line["way"], str(line["epochs"]), duration(line["seconds"]), _ratio(start, line["seconds"])]
        for key in ("paid_off_after", "ahead_with_cache_after"):
            epochs = line.get(key)
            never = "never" if key in line and report["stages"]["extract"] else ""
            cells.append(f"{epochs:,} epoch{'' if epochs == 1 else 's'}" if epochs else never)
        rows.append(cells)
    heading = f"{settings['experiments']} experiments"
    note = (
        f"{heading} of {settings['epochs']} epochs each, one after the other. With the program, each loads the encoder "
        f"({duration(report['program_start'])}). With headstart, each opens and checks the cache, trains and tests. "
        "Extracting has paid for itself when both have taken the same time for as many epochs of one experiment."
    )
    return Section(heading, rows, [note])


def _quality(report: Mapping[str, Any]) -> Section:
    quality = report["quality"]
    notes = [f"{quality['not_run'][0].upper()}{quality['not_run'][1:]}."] if quality["not_run"] else []
    if not quality["trained"]:
        return Section("Quality beside speed", [], notes)
    rows = [["training", "seed", "taken after epoch", "accuracy", "95% interval", "trained in", "weights differ by"]]
    for head in quality["trained"]:
        cells = [head["training"], str(head["seed"]), str(head["epochs"] or ""), f"{head['accuracy']:.4f}"]
        cells += [f"{head['low']:.4f} to {head['high']:.4f}", duration(head["seconds"])]
        rows.append([*cells, "" if head["difference"] is None else f"{head['difference']:.1e}"])
    verdict = "the same head: their weights agree to 1e-4" if quality["agree"] else "NOT the same head, as they must be"
    notes += [
        f"{quality['train_rows']:,} rows to train and choose the epoch on, {quality['test_rows']:,} others to test on, "
        f"truncated at {quality['length']} tokens; the program pads to as many. All but headstart's own defaults use "
        "float32 and the same optimizer, learning rate, batches of 16, masks and epochs, and start at zero. "
        "`headstart extract --long chunks` encodes all of a long text.",
        f"The program with its encoder in eval(), encoding in its loop, and headstart from its cache give {verdict}.",
        "The program as written may differ: its train() turns on dropout in the frozen encoder too, so the head trains "
        "on noisy features and is tested on clean ones.",
        "headstart's head of the same training is taken from the epoch that the validation rows chose; its default "
        "head has no epochs: folds chose its penalty. The program's heads are taken after as many epochs as the "
        "former. The program itself chooses by the test rows, which makes the accuracy that it reports "
        "optimistic. The times include the encoder where it runs in the loop, and not extracting.",
    ]
    return Section("Quality beside speed", rows, notes)


def _repeats(spread: Mapping[str, Any]) -> str:
    interval = f": {duration(spread['low'])} to {duration(spread['high'])}"
    return f"{spread['repeats']}{interval if spread['repeats'] > 1 else ''}"


def _ratio(other: float | None, own: float) -> str:
    """Return how many times as fast as the other this is; "" where the other is not known."""
    if other is None:
        return ""
    ratio = other / own
    return f"{ratio:,.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}"


def draw(path: Path, report: Mapping[str, Any]) -> bool:
    """Draw an epoch on the left and all experiments on the right into a PNG; return False without matplotlib."""
    try:
        import matplotlib.figure
    except ImportError:
        return False
    settings, stages = report["settings"], report["stages"]
    epochs = [(rung["rung"], rung["epoch"]) for rung in report["rungs"]]
    epochs += [(EXTRACT, stages["extract"]), (TRAIN_HEAD, stages["epoch"])]
    totals = []
    for line in report["totals"]:
        other = "" if line["epochs"] == settings["epochs"] else f" ({line['epochs']})"
        totals.append((line["way"] + other, dict.fromkeys(("median", "low", "high"), line["seconds"])))
    figure = matplotlib.figure.Figure(figsize=(13, 1.8 + 0.42 * max(len(epochs), len(totals))), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, epochs, "an epoch over the whole table")
    _bars(right, totals, f"{settings['experiments']} experiments of {settings['epochs']} epochs (unless given)")
    figure.suptitle(title(report), fontsize=10)
    figure.savefig(path, dpi=110)
    return True


def _bars(axis: Any, bars: Sequence[tuple[str, Mapping[str, float] | None]], heading: str) -> None:
    """Draw horizontal bars of medians, with the range of the repeats as a line, and the time in words beside each."""
    medians = [spread["median"] for _, spread in bars if spread]
    if medians:  # otherwise there is nothing to take logarithms of
        axis.set(xscale="log", xlim=(min(medians) / 3, max(medians) * 12))
    for place, (name, spread) in enumerate(bars):
        if spread is None:
            axis.text(0.01, place, "not run", va="center", fontsize=9, transform=axis.get_yaxis_transform())
            continue
        median, low, high = spread["median"], spread["low"], spread["high"]
        axis.barh(place, median, color=_OURS if name.startswith("headstart") else _PROGRAM)
        if low < high:
            axis.errorbar(median, place, xerr=[[median - low], [high - median]], color="black", lw=1.2, capsize=3)
        axis.text(high * 1.12, place, duration(median), va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=9)
    axis.set(ylim=(len(bars) - 0.4, -0.6), xlabel="seconds (logarithmic)", axisbelow=True)
    axis.set_title(heading, fontsize=10, loc="left")
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
