"""What a speedup report says, as tables: the same on the terminal and in Markdown. Plain values in, text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..runs.folders import FolderKind
from ..units import duration
from .rungs import Rung

SPEEDUP = FolderKind(
    name="speedup report",
    file="speedup.json",
    format="headstart-speedup",
    version=1,
    command="headstart speedup",
)
Bars = list[tuple[str, tuple[float, float, float] | None]]
"""Name; value, lowest and highest repeat, or None where it was not run."""
EXTRACT, TRAIN_HEAD = "headstart: extract, once", "headstart: train-head"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        heading: What it is about.
        rows: Cells, the header first; of the columns, the first is a name.
        notes: Sentences that belong to it.
    """

    heading: str
    rows: list[list[str]]
    notes: list[str]


def title(report: Mapping[str, Any]) -> str:
    """One line: which encoder, which rows, which machine."""
    machine, table = report["machine"], report["table"]
    return (
        f"{report['encoder']['name']} on {table['rows']:,} rows ({table['distinct_texts']:,} distinct texts), at most "
        f"{report['settings']['max_length']} tokens; {machine['device']}, {machine['cores']} cores"
    )


def sections(report: Mapping[str, Any]) -> list[Section]:
    """The report: epochs, totals, quality."""
    return [_epochs(report), _totals(report), _quality(report)]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    text = f"{title(report)}\n"
    for section in sections(report):
        text += f"\n## {section.heading}\n\n"
        if section.rows:
            header, *rows = section.rows
            text += "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]) + "\n\n"
        text += "".join(f"- {note}\n" for note in section.notes)
    return f"{text}\n{measured_in(report)}\n"


def measured_in(report: Mapping[str, Any]) -> str:
    """How long all of it took."""
    spent, budget = duration(report["seconds"]), duration(report["settings"]["budget"])
    return f"Measured in {spent} of a budget of {budget}."


def epoch_bars(report: Mapping[str, Any]) -> Bars:
    """What was measured of an epoch, for a picture: the program's rungs, stage one once, stage two."""
    found = [(rung["rung"], rung["epoch"]) for rung in report["rungs"]]
    found += [(EXTRACT, report["stages"]["extract"]), (TRAIN_HEAD, report["stages"]["epoch"])]
    return [(name, (s["median"], s["low"], s["high"]) if s else None) for name, s in found]


def total_bars(report: Mapping[str, Any]) -> Bars:
    """What all experiments take in each way, for a picture."""
    found: Bars = []
    for line in report["totals"]:
        said = "" if line["epochs"] == report["settings"]["epochs"] else f" ({line['epochs']})"
        found.append((line["way"] + said, 3 * (line["seconds"],)))
    return found


def _epochs(report: Mapping[str, Any]) -> Section:
    rows = [["rung", "an epoch takes", "repeats", "over the start", "over the last kept", "rows timed"]]
    medians = {rung["rung"]: rung["epoch"]["median"] for rung in report["rungs"] if rung["epoch"]}
    start, last = medians.get(Rung.START.value), None
    notes = []
    for rung in report["rungs"]:
        if not rung["epoch"]:
            rows.append([rung["rung"], "not run", "", "", "", ""])
            heeded = "; the rungs after it heed it all the same" if rung["kept"] else ""
            notes.append(f"{rung['rung']} was not run: {rung['not_run']}{heeded}.")
            continue
        own, over = rung["epoch"]["median"], rung["over"]
        before = "" if over is None else _times(medians.get(over), own) + ("" if rung["kept"] else ", taken back")
        rows.append(
            [rung["rung"], duration(own), _range(rung["epoch"]), _times(start, own), before, f"{rung['rows']:,}"]
        )
        last = own if rung["kept"] else last
    stages = report["stages"]
    if stages["not_run"]:
        notes.append(f"headstart was not run: {stages['not_run']}.")
    timed = f"{stages['rows']:,}" + (", all of them" if stages["whole"] else "")
    for name, spread in ((EXTRACT, stages["extract"]), (TRAIN_HEAD, stages["epoch"])):
        if spread:
            own = spread["median"]
            rows.append([name, duration(own), _range(spread), _times(start, own), _times(last, own), timed])
    return Section("An epoch over the whole table", rows, notes + _how(report))


def _how(report: Mapping[str, Any]) -> list[str]:
    precision, stages = report["precision"], report["stages"]
    return [
        "Each rung ran for real, each repeat in a process of its own, after a first batch that is not timed, on as "
        "many rows as its share of the budget held. What a sample took is scaled to the whole table by the padded "
        "tokens in it; what an epoch costs whatever its length (starting workers) is counted once. Figures are medians "
        "of the repeats.",
        "An epoch of the program trains on every row. Its test after each epoch, and saving, are left out, which "
        "favours it. headstart's epoch is scaled to every row likewise, its validation included.",
        "Each rung changes the last that was kept, and so do headstart's two. What made the program slower on this "
        "machine, by the least of its times, is reported and taken back; a gain within the range of the repeats is "
        "none. The last rung batches rows by length, as many padded tokens a batch as before, and puts the encoder in "
        "eval(), which spares its dropout too.",
        f"headstart computes in {precision['chosen']} here: {precision['reason']}. Its start (loading the encoder) is "
        + ("part of what was timed." if stages["whole"] else "counted once, and the rest scaled by distinct texts."),
    ]


def _totals(report: Mapping[str, Any]) -> Section:
    settings, lines = report["settings"], report["totals"]
    rows = [["way", "epochs", "all experiments take", "over the start", "extracting has paid for itself after"]]
    rows[0] += ["with the cache there already, after"]
    start = next((line["seconds"] for line in lines if line["way"] == Rung.START.value), None)
    for line in lines:
        paid = []
        for name in ("paid_off_after", "ahead_with_cache_after"):
            known = name in line and report["stages"]["extract"]
            paid.append("" if not known else "never" if line[name] is None else _epochs_of(line[name]))
        rows.append(
            [line["way"], str(line["epochs"]), duration(line["seconds"]), _times(start, line["seconds"]), *paid]
        )
    notes = [
        f"{settings['experiments']} experiments of {settings['epochs']} epochs each, one after the other. One of the "
        f"program's loads its encoder ({duration(report['program_start'])}); one of headstart's opens and checks the "
        "cache, trains and tests. Extracting has paid for itself when both have taken the same for as many epochs of "
        "one experiment.",
    ]
    return Section(f"{settings['experiments']} experiments", rows, notes)


def _quality(report: Mapping[str, Any]) -> Section:
    quality = report["quality"]
    notes = [f"{quality['not_run'][0].upper()}{quality['not_run'][1:]}."] if quality["not_run"] else []
    if not quality["trained"]:
        return Section("Quality beside speed", [], notes)
    rows = [["training", "seed", "taken after epoch", "accuracy", "95% interval", "trained in", "weights differ by"]]
    rows += [
        [
            each["training"],
            str(each["seed"]),
            str(each["epochs"]),
            f"{each['accuracy']:.4f}",
            f"{each['low']:.4f} to {each['high']:.4f}",
            duration(each["seconds"]),
            "" if each["difference"] is None else f"{each['difference']:.1e}",
        ]
        for each in quality["trained"]
    ]
    verdict = "the same head: their weights agree to 1e-4" if quality["agree"] else "NOT the same head, as they must be"
    notes += [
        f"{quality['train_rows']:,} rows to train and choose the epoch on, {quality['test_rows']:,} others to test on, "
        f"cut at {quality['length']} tokens, and padded to as many by the program. All but headstart's own defaults "
        "are in float32, with the same optimiser, learning rate, batches of 16, masks and epochs, and begin at zero.",
        "The program with its encoder in eval(), really encoding in its loop, and headstart from its cache give "
        f"{verdict}.",
        "The program as written may differ: its train() switches the frozen encoder's own dropout on as well, so the "
        "head trains on noisy features and is tested on clean ones.",
        "headstart's heads are taken at the epoch that the validation rows chose, though it trains on to the end of "
        "its epochs; the program's after as many as headstart's same training. The program itself chooses by the test "
        "rows, which makes the accuracy that it reports optimistic. What training took has the encoder in it where it "
        "runs in the loop, and not what extracting took.",
    ]
    return Section("Quality beside speed", rows, notes)


def _range(spread: Mapping[str, Any]) -> str:
    if spread["repeats"] == 1:
        return "1"
    return f"{spread['repeats']}: {duration(spread['low'])} to {duration(spread['high'])}"


def _times(other: float | None, own: float) -> str:
    """How many times as fast as another."""
    if other is None:
        return ""
    ratio = other / own
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"


def _epochs_of(count: int) -> str:
    return f"{count:,} epoch" + ("" if count == 1 else "s")
