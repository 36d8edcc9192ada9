"""Bad and hostile inputs: the command line answers each as the page says, in one line, and without a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.metadata import version

import pytest
from bad_inputs import GROUPS, PAGE, Case, Place, line, places

CASES = [case for cases in GROUPS.values() for case in cases]
CONSTRAINTS = (PAGE.parent.parent / "constraints.txt").read_text(encoding="utf-8")
PINNED = dict(re.findall(r"^(torch|transformers|tokenizers|safetensors)==(.*)$", CONSTRAINTS, re.MULTILINE))
AS_PINNED = all(version(package).split("+")[0] == pinned for package, pinned in PINNED.items())
"""Whether the libraries whose own words are quoted are those of the page."""
FOLLOWED = "a tokenizer.json of another kind than its class"
SHOWN = {shown.split(" | ")[0]: shown for shown in PAGE.read_text(encoding="utf-8").splitlines() if shown[:2] == "| "}


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Place]]:
    with places(tmp_path_factory.mktemp("bad")) as place:
        yield place


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.given for case in CASES])
def test_each_comes_back_as_the_page_says(number: int, place_of: Callable[[int], Place]) -> None:
    case: Case = CASES[number]
    shown, came = SHOWN.get(f"| {case.given}", ""), line(case, place_of(number))
    if not AS_PINNED and case.given == FOLLOWED and "| 0 |" in came:
        pytest.skip("this transformers takes the tokenizer.json as it stands, and not its class")
    if not AS_PINNED:  # what it is about, and the exit code; the reason may be a library's
        shown, came = (" ".join(text.split(" ")[: len(case.given.split()) + 6]) for text in (shown, came))
    assert came == shown, "python tests/bad_inputs.py writes the page"


def test_the_page_has_every_case_once_and_no_other() -> None:
    assert len(SHOWN) == len(CASES) + 1  # and the head of the tables
