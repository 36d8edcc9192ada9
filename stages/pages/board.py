"""Sections of a sweep: its leader board, and its settings one by one."""

from __future__ import annotations

from typing import Any

from ..heads.ranking import measure_name
from ..runs.results import MEASURES
from ..settings import Metric
from ..units import duration
from .figures import curves, label, spreads
from .html import Cell, Html, details, figure, join, paragraph, table, tag
from .subject import Record, Section, Subject

_CURVES = 8


def section(subject: Subject) -> Section:
    """The leader board of a sweep, and how its best settings learned."""
    sweep = subject.sweep
    if sweep is None:
        return Section("board", "Leader board", Html(""))
    settings, ranking, names = sweep["settings"], sweep["ranking"], varied(sweep)
    seeds, folds = len(settings["seeds"]), settings["base"]["folds"]
    over = f"{seeds} seed{'s' if seeds > 1 else ''}" + (f" and {folds} folds" if folds else "")
    diverged = f"; {sweep['diverged']:,} heads diverged" if sweep["diverged"] else ""
    first = paragraph(
        f"{sweep['heads']:,} heads: {len(ranking):,} settings with {over}{diverged}, trained in "
        f"{duration(sweep['seconds'])}. They are ranked by {settings['rank_by']} on validation rows. The scores of the "
        "test rows, below, are those of the first alone: it was trained again, and tested once."
    )
    several = any(line["validation_loss"]["spread"] is not None for line in ranking)
    measures = {key: name for key, name in MEASURES.items() if key in ranking[0]}
    header = ["rank", *names, *measures.values()]
    rows: list[list[object]] = []
    for place, line in enumerate(ranking, 1):
        row: list[object] = [place, *(_setting(line["values"][name]) for name in names)]
        for key in measures:
            mean, spread = line[key]["mean"], line[key]["spread"]
            around = "" if spread is None else f" ± {spread:.4f}"
            row.append(Cell(mean, "diverged" if mean is None else f"{mean:.4f}{around}"))
        rows.append(row)
    what = f"{len(ranking):,} settings, the best first" + ("; ± is the standard deviation" if several else "")
    return Section(
        "board", "Leader board", join([first, table(what, header, rows, filtered=True), _best_curves(subject)])
    )


def varied(sweep: Record) -> list[str]:
    """The settings that have more than one value."""
    return [name for name, values in sweep["settings"]["values"].items() if len(values) > 1]


def _setting(value: Any) -> Cell:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(value if number else None, f"{value:g}" if number else str(value), number=number)


def _words(line: Record, names: list[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_setting(line['values'][name]).shown}" for name in names)


def _best_curves(subject: Subject) -> Html:
    """The validation losses of the best settings, where they have several epochs: of the first seed and fold."""
    sweep, epochs = subject.sweep, subject.epochs
    if sweep is None or not epochs:
        return Html("")
    columns = (epochs[name] for name in ("setting", "seed", "fold", "epoch", "validation_loss"))
    lines: dict[int, list[tuple[int, float]]] = {}
    first: dict[int, tuple[int, int]] = {}
    for setting, seed, fold, epoch, loss in zip(*columns, strict=True):
        if first.setdefault(setting, (seed, fold)) == (seed, fold):
            lines.setdefault(setting, []).append((epoch, loss))
    best = [line for line in sweep["ranking"] if len(lines.get(line["setting"], ())) > 1][:_CURVES]
    if not best:
        return Html("")
    names = varied(sweep)
    plots = []
    for line in best:
        points = lines[line["setting"]]
        name = f"{sweep['ranking'].index(line) + 1}"
        plots.append({"name": name, "x": [x for x, _ in points], "y": [y for _, y in points]})
    key = tag("ol", *(tag("li", _words(line, names)) for line in best), class_="key")
    caption = f"Validation loss of the best {len(best)} settings with epochs, by rank: first seed, first fold"
    return figure(caption, curves(plots, x="epoch", y="validation loss"), details("Their settings", key))


def slices(subject: Subject) -> Section:
    """How the settings score by the values of each."""
    sweep = subject.sweep
    if sweep is None:
        return Section("slices", "Slices", Html(""))
    names, metric = varied(sweep), Metric(sweep["settings"]["rank_by"])
    key = measure_name(metric)
    score = MEASURES[key]
    lines = [line for line in sweep["ranking"] if line[key]["mean"] is not None]
    places = {id(line): place for place, line in enumerate(sweep["ranking"], 1)}
    plots, rows = [], []
    for name in names:
        groups: dict[str, list[float]] = {}
        texts: dict[str, list[str]] = {}
        for line in sorted(lines, key=lambda line: _order(line["values"][name])):
            value = str(_setting(line["values"][name]).shown)
            groups.setdefault(value, []).append(line[key]["mean"])
            texts.setdefault(value, []).append(f"rank {places[id(line)]}<br>{label(_words(line, names), 200)}")
        spelled = name.replace("_", " ")
        plots.append(figure(f"{score} by {spelled}", spreads(groups, texts, x=spelled, y=score), height=300))
        for value, scores in groups.items():
            ordered = sorted(scores, reverse=not metric.lower_is_better)
            middle = ordered[len(ordered) // 2] if len(ordered) % 2 else sum(ordered[len(ordered) // 2 - 1 :][:2]) / 2
            rows.append([spelled, value, len(scores), ordered[0], middle, ordered[-1]])
    if not plots:
        return Section("slices", "Slices", Html(""))
    numbers = table(
        f"{score} by the value of each setting", ["setting", "value", "settings", "best", "median", "worst"], rows
    )
    what = paragraph(
        f"Each point is one combination of the settings, with its mean {score} on validation rows. A setting whose "
        "values score alike whatever the others are does not matter."
    )
    return Section("slices", "Slices", join([what, tag("div", *plots, class_="grid"), details("Numbers", numbers)]))


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))
