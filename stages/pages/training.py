"""Section: how a head was chosen. The penalties that were tried, or the epochs of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import curves
from .html import Cell, Html, details, figure, join, paragraph, table
from .subject import Record, Section, Subject


def section(subject: Subject) -> Section:
    """How a run's head was chosen."""
    run = subject.run
    parts = [_penalties(run["search"]) if (run.get("search") or {}).get("candidates") else Html("")]
    if run["history"]:
        parts.append(_epochs(run["history"], run["best_epoch"]))
    if certificate := run.get("certificate"):
        state = "converged" if certificate["converged"] else "did NOT converge"
        parts.append(
            paragraph(
                f"The solver {state} in {certificate['iterations']:,} iterations ({certificate['reason']}): the "
                f"objective is {certificate['objective']:.4f}, at most about "
                f"{certificate['gap']:.1e} above its minimum."
            )
        )
    return Section("training", "How the head was chosen", join(parts))


def _penalties(search: Record) -> Html:
    ways: dict[str, list[Mapping[str, Any]]] = {}
    for each in sorted(search["candidates"], key=lambda each: each["l2"]):
        scaling = "" if each["scaling"] == "none" else f", {each['scaling']}"
        ways.setdefault(f"{each['feature']}{scaling}", []).append(each)
    lines = []
    for name, candidates in ways.items():
        line = {"name": name, "x": [each["l2"] for each in candidates], "y": [each["mean"] for each in candidates]}
        if all(each["spread"] is not None for each in candidates):
            line["low"] = [each["mean"] - each["spread"] for each in candidates]
            line["high"] = [each["mean"] + each["spread"] for each in candidates]
        lines.append(line)
    choice, metric = search["choice"], str(search["metric"])
    marks = [{"name": "chosen", "x": choice["l2"], "y": choice["mean"]}]
    by = f"{search['folds']} folds" if search["folds"] else "validation rows"
    band = "; the band is one standard deviation of the folds" if any("low" in line for line in lines) else ""
    rows = [
        [
            name,
            Cell(each["l2"], f"{each['l2']:.4g}"),
            each["mean"],
            each["spread"],
            each["lowest"],
            each["highest"],
            "chosen" if each == choice else "" if each["converged"] else "did not converge",
        ]
        for name, candidates in ways.items()
        for each in candidates
    ]
    header = ["vectors", "penalty", metric, "standard deviation", "lowest fold", "highest fold", ""]
    plot = curves(lines, x="L2 penalty", y=f"{metric} on rows not trained on", log=True, marks=marks)
    numbers = details("Numbers", table(f"{metric} of each penalty", header, rows))
    caption = f"{metric} of {len(rows)} ways to make the head, by {by} of {search['rows']:,} rows{band}"
    rule = paragraph(
        "Chosen is the best, or the next larger penalty where it is within one standard error: "
        "no test row was read before."
    )
    return join([figure(caption, plot, numbers), rule])


def _epochs(history: Sequence[Record], best: int | None) -> Html:
    epochs = [each["epoch"] for each in history]

    def line(name: str, key: str) -> dict[str, Any]:
        return {"name": name, "x": epochs, "y": [each[key] for each in history]}

    at_best = next((each for each in history if each["epoch"] == best), None)
    header = ["epoch", "training loss", "validation loss", "validation accuracy", "validation macro F1"]
    keys = ("epoch", "train_loss", "validation_loss", "validation_accuracy", "validation_macro_f1")
    numbers = details("Numbers", table("Each epoch", header, [[each[key] for key in keys] for each in history]))
    parts = []
    for what, names in (
        ("Loss", {"training": "train_loss", "validation": "validation_loss"}),
        ("Score", {"accuracy": "validation_accuracy", "macro F1": "validation_macro_f1"}),
    ):
        key = list(names.values())[-1 if what == "Loss" else 0]
        if history[0][key] is None:  # numbers have losses alone
            continue
        marks = [] if at_best is None else [{"name": f"chosen: epoch {best}", "x": best, "y": at_best[key]}]
        plot = curves([line(*each) for each in names.items()], x="epoch", y=what.lower(), marks=marks)
        where = "training and validation rows" if what == "Loss" else "validation rows"
        parts.append(figure(f"{what} on {where} after each epoch", plot, height=320))
    note = paragraph("The training loss is the one that is minimised: with dropout, smoothing and class weights.")
    return join([*parts, numbers, note])
