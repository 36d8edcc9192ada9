"""The pages: their commands and their Python run, in order, on a small table; their links lead somewhere."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from processes import command_here
from recipes import with_recipe
from tiny import tiny_rows

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "cache/*.md", "bench/*.md", "demo/*.md")
    for page in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INTERRUPTED = re.compile(r"^\$ .*\n\^C.*\n", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
RUN = [
    f"docs/{name}.md"
    for name in ("index", "tables", "evaluation", "sweeps", "recovery", "shards", "python", "coming-from")
]
NEEDED = "headstart extract reviews.csv --encoder bert-base-chinese --out reviews.h5"
"""What pages of later steps take as given."""
TRAIN = "headstart train-head reviews.h5 --out run"
OF_A_HEAD = {
    "docs/export.md": [TRAIN],
    "docs/predict.md": [TRAIN],
    "docs/evaluate.md": [TRAIN, "headstart extract new.csv --encoder bert-base-chinese --out new.h5"],
    "docs/report.md": [
        TRAIN,
        "headstart sweep reviews.h5 --out sweep --solver exact --l2 1,10",
        "headstart audit reviews.h5 --out audit",
    ],
}
"""Pages about trained heads, which show sessions with their output; and what they take as given, beside `NEEDED`."""


@pytest.fixture
def desk(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tables and encoders that the pages name."""
    rows = tiny_rows(60)
    for name, part in {
        "reviews": rows[:50],
        "grown": rows,
        "later": rows[45:],
        "other": rows[30:],
        "new": rows[50:],
        "more": tiny_rows(70)[60:],
    }.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *part])
    (tmp_path / "bert-base-chinese").symlink_to(tiny)
    for name in ("all-MiniLM-L6-v2", "my-setfit-model"):
        with_recipe(tiny, tmp_path / name)
    (tmp_path / "sentence-transformers").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [*RUN, *OF_A_HEAD])
def test_the_examples_of_a_page_run(page: str, desk: Path) -> None:
    names: dict[str, object] = {}
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    if not any(NEEDED in code for _, code in blocks) and page != "docs/coming-from.md":
        run_line(NEEDED)
    for line in OF_A_HEAD.get(page, ()):
        run_line(line)
    ran = 0
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, page, "exec"), names)
            ran += 1
        for line in INTERRUPTED.sub("", code).splitlines() if not kind else ():
            command = line.removeprefix("$ ") if page in OF_A_HEAD else line
            if command.startswith("headstart "):
                run_line(command)
                ran += 1
    assert ran


def run_line(line: str) -> None:
    done = command_here(*shlex.split(line, comments=True)[1:])
    assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = (link.partition("#")[0] for link in LINK.findall(text) if not link.startswith(("http", "#", "mailto")))
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_every_page_of_the_guide_is_in_its_contents() -> None:
    contents = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = set(re.search(r"```\{toctree\}.*", contents, re.DOTALL)[0].splitlines())  # type: ignore[index]
    assert [page.stem for page in (ROOT / "docs").glob("*.md") if page.stem not in {*listed, "index"}] == []
