"""The page: its sections in one self-contained HTML file, with its style, its script and plotly inside."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files

from . import audited, board, calibration, confusions, data, feature_map, scores, texts, training
from .figures import plotly_script
from .html import Cell, Html, join, paragraph, table, tag, text
from .subject import Key, Record, Section, Subject

BEGINNING = '<!doctype html>\n<html lang="en" data-made-by="headstart report"'
"""How every report begins; another file is not overwritten."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """What a report shows besides its subjects. None of it has to be there."""

    cache: Record | None = None  # what `inspect` says of the cache
    maps: Sequence[feature_map.Map | None]  # one for each subject
    texts: Mapping[Key, str] | None = None
    audit: Record | None = None
    issues: Sequence[Record] = ()
    most: int  # lines of each list of rows


def build(subjects: Sequence[Subject], material: Material) -> str:
    """Return the page. It depends on what it is given alone: the same records give the same bytes.

    Raises:
        SettingsError: plotly is not installed.
    """
    blocks = [[_compare(subjects)], *([] for _ in subjects), []]
    for number, (subject, found) in enumerate(zip(subjects, material.maps, strict=True)):
        blocks[number + 1] = [
            board.section(subject),
            board.slices(subject),
            scores.section(subject),
            confusions.section(subject, material.texts),
            calibration.section(subject),
            training.section(subject),
            texts.section(subject, material.texts, material.most),
            feature_map.section(subject, found, material.texts),
            data.section(subject, material.cache),
        ]
    blocks[-1] = [
        data.passes(subjects),
        audited.section(material.audit, material.issues, material.texts, material.most),
    ]
    links, parts = [], []

    def title(key: str, words: str) -> Html:
        return tag("h2" if len(subjects) == 1 else "h3", words, id=f"{key}-title", class_="title")

    for number, block in enumerate(blocks):
        named = [(f"part{number}-{section.key}", section) for section in block if section.body]
        several = len(subjects) > 1 and 0 < number <= len(subjects)
        heading = subjects[number - 1].name if several else None
        links += [tag("p", heading)] * several
        links.append(tag("ul", *(tag("li", tag("a", each.title, href=f"#{key}")) for key, each in named)))
        inside = [
            tag("section", title(key, each.title), each.body, id=key, aria_labelledby=f"{key}-title")
            for key, each in named
        ]
        if inside:
            parts.append(tag("article", *[tag("h2", heading, class_="subject")] * several, *inside))
    navigation = tag("nav", tag("details", tag("summary", "Contents"), *links, open=True), aria_label="Sections")
    layout = tag("div", navigation, tag("main", *parts, id="main", tabindex="-1"), class_="layout")
    return _document(_title(subjects), join([_header(subjects), layout, _footer(material)]))


def _title(subjects: Sequence[Subject]) -> str:
    return subjects[0].name if len(subjects) == 1 else f"{len(subjects)} compared"


def _header(subjects: Sequence[Subject]) -> Html:
    first = subjects[0]
    kinds = " and ".join(sorted({"sweep" if each.sweep else "run" for each in subjects}))
    what = (
        f"{kinds} of {first.task}, on {data.file_name(first.run['encoder']['name'])}"
        if len(subjects) == 1
        else kinds + "s"
    )
    words = tag("div", paragraph("headstart report"), tag("h1", _title(subjects)), paragraph(what))
    return tag("header", words, tag("button", "Dark", type="button", hidden=True))


def _compare(subjects: Sequence[Subject]) -> Section:
    """All subjects in one table, if there are several, and whether their scores can be compared."""
    if len(subjects) == 1:
        return Section("compare", "Side by side", Html(""))
    rows = []
    for subject in subjects:
        name, key = scores.headline(subject)
        metrics = subject.metrics
        bounds = metrics.get(f"{key}_interval") or (None, None)
        where = [subject.task, data.file_name(subject.run["encoder"]["name"]), subject.run["settings"]["feature"]]
        value = None if metrics.get(key) is None else Cell(metrics[key], f"{metrics[key]:.4f}")
        rows.append([subject.name, *where, metrics["rows"], name, value, *bounds])
    tested = [None if subject.test is None else sorted(subject.test.keys) for subject in subjects]
    if None in tested:
        same = "Not all of them tell which rows they were tested on, so their scores may not be comparable."
    elif all(keys == tested[0] for keys in tested):
        same = "All are scored on the same test rows."
    else:
        same = "They are NOT scored on the same test rows: a difference of their scores may come from the rows."
    header = ["", "task", "encoder", "feature", "test rows", "score", "value", "low", "high"]
    what = "The first of the scores of each, with 95% intervals"
    return Section("compare", "Side by side", join([table(what, header, rows), paragraph(same)]))


def _footer(material: Material) -> Html:
    absent = {
        "the texts that a head was wrong about (--texts)": material.texts,
        "an audit of the labels (--audit)": material.audit,
        "a map of the features (--cache)": material.cache,
    }
    missing = [what for what, given in absent.items() if given is None]
    left_out = paragraph(f"Not asked for: {', '.join(missing)}.") if missing else ""
    made = paragraph(
        f"Made by headstart {version('headstart')}. Everything is in this file, and it loads nothing from a network. "
        "Intervals are at 95%."
    )
    return tag("footer", left_out, made, tag("noscript", "The plots need JavaScript; the tables do not."))


def _document(title: str, body: Html) -> str:
    here = files(__package__)
    style, ours = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    scripts = [plotly_script().replace("\r\n", "\n"), ours]
    # Only these two scripts run, whatever stands on the page, and nothing is loaded from elsewhere.
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
    policy += "base-uri 'none'; form-action 'none'"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{text(title)} - headstart report</title>",
        f"<style>{style}</style>",
    ]
    skip = '<a class="skip" href="#main">Skip to the report</a>'
    run = "".join(f"<script>{one}</script>\n" for one in scripts)
    return "\n".join([f"{BEGINNING}>", "<head>", *head, "</head>", "<body>", skip, body, run, "</body>", "</html>", ""])
