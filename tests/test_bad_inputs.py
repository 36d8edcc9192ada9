"""Bad and hostile inputs: the command line answers each as the page says, in one line, and without a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from bad_inputs import GROUPS, PAGE, Case, Place, line, places

CASES = [case for cases in GROUPS.values() for case in cases]
SHOWN = {shown.split(" | ")[0]: shown for shown in PAGE.read_text(encoding="utf-8").splitlines() if shown[:2] == "| "}


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Place]]:
    with places(tmp_path_factory.mktemp("bad")) as place:
        yield place


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.given for case in CASES])
def test_each_comes_back_as_the_page_says(number: int, place_of: Callable[[int], Place]) -> None:
    case: Case = CASES[number]
    assert line(case, place_of(number)) == SHOWN.get(f"| {case.given}"), "python tests/bad_inputs.py writes the page"


def test_the_page_has_every_case_once_and_no_other() -> None:
    assert len(SHOWN) == len(CASES) + 1  # and the head of the tables
