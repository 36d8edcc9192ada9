"""`report`: what the page says is what the run says; nothing of the data is markup; and it is whole or not there."""

from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from headstart.cache.errors import (
    DamagedError,
    FormatError,
    IdentityError,
    OutputExistsError,
    SettingsError,
    TableError,
)
from headstart.stages.pages.feature_map import project, sample_rows
from headstart.stages.pages.figures import label
from headstart.stages.pages.html import Html, script_json, tag, text
from headstart.stages.progress import Action, Event, Outcome
from headstart.stages.report import report
from headstart.stages.runs.results import SCORES
from headstart.stages.settings import ExtractSettings, ReportSettings
from headstart.stages.units import plain
from processes import command
from reported import LABELS, TEXT_COLUMN, TEXTS

READING = ExtractSettings(text_column=TEXT_COLUMN)
VOID = {"meta", "input", "br", "img"}


class Page(HTMLParser):
    """The elements of a page, and the text of each kind of element."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for name in set(self._open):
            self.texts[name][-1] += data

    @property
    def titles(self) -> list[str]:
        return [content for name in ("h2", "h3") for content in self.texts.get(name, [])]

    def plots(self) -> list[dict[str, Any]]:
        scripts = [attributes for name, attributes in self.elements if name == "script"]
        contents = zip(scripts, self.texts["script"], strict=True)
        return [json.loads(content) for attributes, content in contents if attributes.get("type") == "application/json"]


@pytest.fixture(scope="module")
def pages(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Everything about each kind of run, and about the sweep; and two runs side by side."""
    out, made = tmp_path_factory.mktemp("out"), {}
    for kind in ("classes", "multi-label", "regression", "ordinal", "sweep"):
        cache = folder / ("classes.h5" if kind == "sweep" else f"{kind}.h5")
        given: dict[str, Any] = {"cache": cache, "texts": folder / "table.csv", "reading": READING}
        audit = folder / "audit" if kind == "classes" else None
        settings = ReportSettings(worst=5, points=60)
        made[kind] = report(folder / kind, out / f"{kind}.html", settings, **given, audit=audit).read_text()
    made["both"] = report([folder / "classes", folder / "sweep"], out / "both.html").read_text()
    return made


COMMON = {"Scores", "How the head was chosen", "Texts", "Map of the features", "Trained on", "Encoder passes"}


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("classes", {*COMMON, "Confusions", "Calibration", "Audit of the labels"}),
        ("multi-label", {*COMMON, "Calibration"}),
        ("regression", {*COMMON, "Predicted and true numbers"}),
        ("ordinal", {*COMMON, "Confusions", "Calibration"}),
        ("sweep", {*COMMON, "Confusions", "Calibration", "Leader board", "Slices"}),
    ],
)
def test_a_page_has_the_sections_of_its_kind_and_its_scores(
    pages: dict[str, str], folder: Path, kind: str, sections: set[str]
) -> None:
    page = Page(pages[kind])
    assert set(page.titles) == sections
    links = {attributes["href"] for name, attributes in page.elements if name == "a" and "href" in attributes}
    ids = {f"#{attributes['id']}" for _, attributes in page.elements if attributes.get("id")}
    assert links <= ids
    run = json.loads((folder / kind / ("winner/run.json" if kind == "sweep" else "run.json")).read_text())
    test, cells = run["metrics"]["test"], page.texts["td"]
    for key in SCORES.values():
        if test.get(key) is not None:
            assert f"{test[key]:.4f}" in cells
        for bound in test.get(f"{key}_interval") or ():
            assert f"{bound:.4f}" in cells
    for name in ("weights_sha256", "tokenizer_sha256"):
        assert run["identity"][name] in cells
    for count in run["rows"].values():
        assert f"{count:,}" in pages[kind]
    assert f"{run['encoder_passes']['saved']:,}" in cells or kind == "sweep"


def test_nothing_of_the_data_is_markup(pages: dict[str, str]) -> None:
    for content in pages.values():
        page = Page(content)
        assert {name for name, _ in page.elements} & {"img", "i", "b", "iframe", "object", "svg"} <= {"i", "b"}
        kinds = [attributes.get("type") for name, attributes in page.elements if name == "script"]
        assert kinds.count(None) == 2 and set(kinds) == {None, "application/json"}
        assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
        assert "window.ran" not in "".join(page.texts["script"][-2:])
        assert "\u202e" not in content and "\u2028" not in "".join(page.texts["script"])
        for plot in page.plots():
            assert "<script" not in json.dumps(plot).lower() and "<img" not in json.dumps(plot).lower()
            assert "<b>" not in json.dumps(plot)
    assert plain(LABELS[0]) in Page(pages["classes"]).texts["th"], "and it is shown as it is"


def test_a_page_loads_nothing_and_runs_nothing_but_its_own(pages: dict[str, str]) -> None:
    for content in pages.values():
        page = Page(content)
        sources = [
            value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
        ]
        assert all(value is not None and value.startswith("#") for value in sources)
        assert "link" not in {name for name, _ in page.elements} and "url(" not in page.texts["style"][0]
        (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy and policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe-eval" not in policy and "http" not in policy and policy.count("'sha256-") == 2
        assert content.index("Content-Security-Policy") < content.index("<script")


def test_the_same_records_give_the_same_bytes(pages: dict[str, str], folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"cache": folder / "classes.h5", "texts": folder / "table.csv", "reading": READING}
    again = report(
        folder / "classes", tmp_path / "p.html", ReportSettings(worst=5, points=60), **given, audit=folder / "audit"
    )
    assert again.read_text() == pages["classes"]


def test_no_folder_of_this_machine_is_named(pages: dict[str, str], folder: Path) -> None:
    for content in pages.values():
        assert str(folder.parent) not in html.unescape(content)


def test_the_texts_are_those_of_the_worst_rows(pages: dict[str, str], folder: Path) -> None:
    lines = [
        line for line in pq.read_table(folder / "classes" / "predictions.parquet").to_pylist() if line["part"] == "test"
    ]
    wrong = sorted(
        (line for line in lines if line["label"] != line["prediction"]), key=lambda a: a["label_probability"]
    )
    cells = Page(pages["classes"]).texts["td"]
    for line in wrong[:5]:
        assert plain(" ".join(TEXTS[line["row"] - 1].split())) in cells
    assert "the 5 test rows that it was most wrong about" in pages["classes"].lower()


def test_scores_of_different_rows_are_not_compared_in_silence(
    pages: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    assert "All are scored on the same test rows." in pages["both"]
    other = report([folder / "classes", folder / "regression"], tmp_path / "p.html").read_text()
    assert "NOT scored on the same test rows" in other
    harmed = tmp_path / "harmed"
    shutil.copytree(folder / "classes", harmed)
    table = pq.read_table(harmed / "predictions.parquet")
    pq.write_table(table.slice(0, table.num_rows - 1), harmed / "predictions.parquet")
    assert "NOT scored on the same test rows" in report([folder / "sweep", harmed], tmp_path / "q.html").read_text()


def test_a_table_of_other_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    for texts, why in ((TEXTS[1:] + TEXTS[:1], r"row \d+: it is not the text"), (TEXTS[:40], r"has no row \d+")):
        with pytest.raises(TableError, match=why):
            report(folder / "classes", tmp_path / "p.html", texts={"text": texts})
    with pytest.raises(IdentityError, match="single texts"):
        pairs = ExtractSettings(text_pair_column="b")
        report(folder / "classes", tmp_path / "p.html", texts={"text": TEXTS, "b": TEXTS}, reading=pairs)
    assert not [*tmp_path.iterdir()]


def test_a_cache_of_other_features_is_refused(folder: Path, tmp_path: Path, tiny: Path) -> None:
    from extracting import run

    other, _ = run({"text": TEXTS}, tmp_path / "o.h5", tiny, label_column=None, max_length=7)
    with pytest.raises(IdentityError, match="max_length"):
        report(folder / "classes", tmp_path / "p.html", cache=other.path)


def test_a_page_is_replaced_whole_and_only_if_asked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.html"
    events: list[Event] = []
    assert report(folder / "classes", out, report=events.append) == out
    assert next(e for e in events if isinstance(e, Outcome)).action is Action.MADE
    before = out.read_bytes()
    with pytest.raises(OutputExistsError, match="overwrite"):
        report(folder / "regression", out)
    with pytest.raises(FormatError):
        report(tmp_path, out, overwrite=True)
    assert out.read_bytes() == before and [*tmp_path.iterdir()] == [out]
    report(folder / "regression", out, overwrite=True)
    assert out.read_bytes() != before
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="not a report"):
        report(folder / "classes", out, overwrite=True)
    assert out.read_text() == "mine"
    for name in ("p.txt", "no/p.html"):
        with pytest.raises(OutputExistsError):
            report(folder / "classes", tmp_path / name)
    with pytest.raises(SettingsError, match="twice"):
        report([folder / "classes", folder / "classes"], tmp_path / "q.html")


def test_without_plotly_the_extra_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(SettingsError, match=re.escape("headstart[report]")):
        report(folder / "classes", tmp_path / "p.html")


def test_a_record_that_headstart_did_not_write_is_damage(folder: Path, tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    shutil.copytree(folder / "classes", harmed)
    record = json.loads((harmed / "run.json").read_text())
    record["metrics"]["test"]["per_class"] = {"a": 1}
    (harmed / "run.json").write_text(json.dumps(record))
    with pytest.raises(DamagedError, match="not as headstart writes it"):
        report(harmed, tmp_path / "p.html")


def test_runs_without_predictions_have_a_page(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "ordinal", tmp_path / "old")
    (tmp_path / "old" / "predictions.parquet").unlink()
    page = Page(report(tmp_path / "old", tmp_path / "p.html", texts={"text": []}).read_text())
    assert "Scores" in page.titles and "Texts" not in page.titles


def test_the_plots_are_plots_of_plotly(pages: dict[str, str]) -> None:
    import plotly.graph_objects as go

    count = 0
    for content in pages.values():
        for plot in Page(content).plots():
            go.Figure(json.loads(re.sub(r'"@\w+"', '"#123456"', json.dumps(plot))))  # refuses what it does not know
            count += 1
    assert count > 15


def test_the_map_is_a_projection_and_its_sample_is_in_proportion() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 8)) * np.arange(8, 0, -1)).astype(np.float32)
    points, shares = project(features)
    centered = features - features.mean(axis=0, dtype=np.float64)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(centered @ directions[:2].T), atol=1e-4)
    np.testing.assert_allclose(shares, (singular**2 / (singular**2).sum())[:2], rtol=1e-5)
    groups = np.repeat([0, 1, 2], [900, 90, 2])
    rows = sample_rows(groups, 100)
    assert np.bincount(groups[rows]).tolist() == [91, 9, 2] and (np.diff(rows) > 0).all()
    assert project(np.ones((1, 3), np.float32))[0].tolist() == [[0, 0]]


def test_text_is_escaped_wherever_it_stands() -> None:
    assert text("<a b='c' d=\"e\"> &amp;") == "&lt;a b=&#x27;c&#x27; d=&quot;e&quot;&gt; &amp;amp;"
    assert tag("p", "<", Html("<b>"), title='"', data_value=0) == '<p title="&quot;" data-value="0">&lt;<b></p>'
    assert json.loads(script_json(["</script>\u2028"])[len('<script type="application/json">') : -9]) == [
        "</script>\u2028"
    ]
    assert "</script>" not in script_json("</script>")[:-9] and "null" in script_json(float("nan"))
    assert label("<b>%{x}\x00</b>") == "&lt;b&gt;%{x}\\x00&lt;/b&gt;"


def test_the_command_writes_a_page(folder: Path, tmp_path: Path) -> None:
    done = command("report", folder / "sweep", folder / "ordinal", "--out", tmp_path / "p.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'p.html'}\n")
    refused = command("report", folder / "sweep", "--out", tmp_path / "q.html", "--text-column", "x")
    assert refused.returncode == 2 and "--text-column has no effect without --texts" in refused.stderr
