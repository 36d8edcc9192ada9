"""Plots of a report, as plotly takes them: data and layout, plain values. The one module that knows plotly.

Colours are names such as ``@accent``: the page replaces them by those of its light or dark look. plotly reads some HTML
in texts, so texts of the data go through `label`.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ...cache.errors import SettingsError
from ..units import plain

Plot = dict[str, Any]
_HOVER_CHARACTERS, _HOVER_WIDTH = 400, 64
_MOST_NAME = 40


def plotly_script() -> str:
    """Return the program that draws the plots.

    Raises:
        SettingsError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise SettingsError("a report is drawn by plotly, which is absent: pip install 'headstart[report]'") from None
    return str(get_plotlyjs())


def label(value: object, most: int = _MOST_NAME) -> str:
    """Return a text of the data as plotly shows it: escaped, in one line, and not too long."""
    line = plain(" ".join(str(value).split()))
    return html.escape(line if len(line) <= most else line[: most - 1] + "…", quote=False)


def hover_text(value: str) -> str:
    """Return a text of the data in lines for a hover label."""
    line = plain(" ".join(value.split()))
    line = line if len(line) <= _HOVER_CHARACTERS else line[: _HOVER_CHARACTERS - 1] + "…"
    return "<br>".join(html.escape(part, quote=False) for part in textwrap.wrap(line, _HOVER_WIDTH))


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, **more}


def curves(
    lines: Sequence[Mapping[str, Any]], *, x: str, y: str, log: bool = False, marks: Sequence[Mapping[str, Any]] = ()
) -> Plot:
    """Lines over a common axis.

    Args:
        lines: Each with ``name``, ``x``, ``y``, and perhaps ``low`` and ``high`` (a band around it) and ``color``.
        x: What the axis below is.
        y: What the axis beside is.
        log: Whether the axis below is logarithmic.
        marks: Points that stand out, each with ``name``, ``x`` and ``y``.
    """
    data: list[Plot] = []
    for number, line in enumerate(lines):
        color, common = line.get("color", f"@c{number % 8 + 1}"), {"type": "scatter", "name": label(line["name"])}
        if "low" in line:
            around = {"x": [*line["x"], *reversed(line["x"])], "y": [*line["high"], *reversed(line["low"])]}
            hidden = {"showlegend": False, "hoverinfo": "skip", "opacity": 0.18, "line": {"width": 0}}
            data.append({**common, **around, **hidden, "mode": "lines", "fill": "toself", "fillcolor": color})
        mode = "lines+markers" if len(line["x"]) <= 40 else "lines"
        style = {"line": {"color": color, "width": 2}, "marker": {"color": color, "size": 5}}
        data.append({**common, "x": line["x"], "y": line["y"], "mode": mode, **style})
    for mark in marks:
        marker = {"symbol": "circle-open", "size": 15, "color": "@ink", "line": {"width": 2.5}}
        point = {"type": "scatter", "mode": "markers", "x": [mark["x"]], "y": [mark["y"]], "marker": marker}
        data.append({**point, "name": label(mark["name"])})
    return {"data": data, "layout": {"xaxis": _axis(x, type="log" if log else "linear"), "yaxis": _axis(y)}}


def heatmap(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Plot:
    """A confusion matrix of many classes: the colour is the share of the row."""
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    texts = [
        [
            f"{label(true)} predicted as {label(said)}<br>{count:,} of {sum(row):,} rows ({share:.1%})"
            for said, count, share in zip(names, row, of_row, strict=True)
        ]
        for true, row, of_row in zip(names, counts, shares, strict=True)
    ]
    ticks = {"tickvals": list(range(len(names))), "ticktext": [label(name, 20) for name in names]}
    few = ticks if len(names) <= 40 else {"showticklabels": False}
    trace = {"type": "heatmap", "z": shares, "text": texts, "hoverinfo": "text", "zmin": 0, "zmax": 1}
    scale = {"colorscale": [[0, "@paper"], [1, "@accent"]], "colorbar": {"title": {"text": "share of row"}}}
    axes = {"xaxis": _axis("predicted", **few), "yaxis": _axis("true", **few, autorange="reversed")}
    return {"data": [{**trace, **scale}], "layout": axes}


def reliability(bins: Sequence[Mapping[str, Any]], *, x: str, y: str) -> Plot:
    """How often what is said with some probability is so, with counts below. Bins have ``from``, ``to``, ``rows``,
    ``confidence``, ``accuracy``, ``low`` and ``high``."""
    some = [each for each in bins if each["rows"]]
    ideal: Plot = {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "as often as it says"}
    ideal |= {"line": {"color": "@muted", "dash": "dot", "width": 1.5}, "hoverinfo": "skip"}
    reach = {
        "type": "data",
        "symmetric": False,
        "array": [each["high"] - each["accuracy"] for each in some],
        "arrayminus": [each["accuracy"] - each["low"] for each in some],
        "color": "@accent",
        "thickness": 1.5,
        "width": 3,
    }
    points = {
        "type": "scatter",
        "mode": "markers+lines",
        "name": "observed, with 95% interval",
        "x": [each["confidence"] for each in some],
        "y": [each["accuracy"] for each in some],
        "error_y": reach,
        "marker": {"color": "@accent", "size": 8},
        "line": {"color": "@accent", "width": 1},
    }
    counts = {
        "type": "bar",
        "name": "rows",
        "x": [(each["from"] + each["to"]) / 2 for each in bins],
        "y": [each["rows"] for each in bins],
        "width": [0.9 * (each["to"] - each["from"]) for each in bins],
        "yaxis": "y2",
        "marker": {"color": "@muted"},
        "showlegend": False,
    }
    layout = {
        "xaxis": _axis(x, range=[0, 1.02], anchor="y2"),
        "yaxis": _axis(y, range=[0, 1.02], domain=[0.32, 1]),
        "yaxis2": _axis("rows", domain=[0, 0.22]),
    }
    return {"data": [ideal, points, counts], "layout": layout}


def against(true: Sequence[float], said: Sequence[float], texts: Sequence[str]) -> Plot:
    """Predicted numbers against the true ones; ``texts`` go through `hover_text`."""
    ends = [min(*true, *said), max(*true, *said)]
    ideal: Plot = {
        "type": "scatter",
        "mode": "lines",
        "x": ends,
        "y": ends,
        "name": "predicted = true",
        "hoverinfo": "skip",
    }
    points: Plot = {"type": "scatter", "mode": "markers", "x": list(true), "y": list(said), "name": "test rows"}
    points |= {"text": list(texts), "hoverinfo": "x+y+text" if texts else "x+y"}
    points |= {"marker": {"color": "@accent", "size": 6, "opacity": 0.5}}
    data = [{**ideal, "line": {"color": "@muted", "dash": "dot"}}, points]
    return {"data": data, "layout": {"xaxis": _axis("true"), "yaxis": _axis("predicted")}}


def spreads(groups: Mapping[str, Sequence[float]], texts: Mapping[str, Sequence[str]], *, x: str, y: str) -> Plot:
    """A box and all its points for each group of numbers."""
    data = [
        {
            "type": "box",
            "name": label(name, 18),
            "x0": place,
            "y": list(values),
            "text": list(texts[name]),
            "hoverinfo": "y+text",
            "boxpoints": "all",
            "jitter": 0.5,
            "pointpos": 0,
            "marker": {"color": "@accent", "size": 5, "opacity": 0.65},
            "line": {"color": "@muted", "width": 1},
            "fillcolor": "@clear",
            "showlegend": False,
        }
        for place, (name, values) in enumerate(groups.items())
    ]
    ticks = {"tickvals": list(range(len(groups))), "ticktext": [label(name, 18) for name in groups]}
    return {"data": data, "layout": {"xaxis": _axis(x, **ticks, zeroline=False), "yaxis": _axis(y)}}


def cloud(groups: Sequence[Mapping[str, Any]], *, x: str, y: str, scale: str | None = None) -> Plot:
    """Points in the plane, to zoom into.

    Args:
        groups: Each with ``name``, ``x``, ``y``, ``text`` (of the hover labels), and ``values`` if colours are a scale.
        x: What the axis below is.
        y: What the axis beside is.
        scale: The name of the scale of colours, if they are one.
    """
    data = []
    for number, group in enumerate(groups):
        marker: Plot = {"size": 6, "opacity": 0.6, "color": "@muted" if group.get("rest") else f"@c{number % 8 + 1}"}
        if scale is not None:
            marker |= {"color": group["values"], "colorscale": "Viridis", "colorbar": {"title": {"text": scale}}}
        points = {"type": "scatter", "mode": "markers", "name": label(group["name"]), "marker": marker}
        data.append({**points, "x": group["x"], "y": group["y"], "text": group["text"], "hoverinfo": "text"})
    axes = {"xaxis": _axis(x, zeroline=False), "yaxis": _axis(y, zeroline=False)}
    return {"data": data, "layout": {**axes, "dragmode": "zoom", "showlegend": scale is None}}
