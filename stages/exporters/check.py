"""An export beside headstart: logits and labels of texts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ...cache.errors import ExportError
from ..settings import Task
from .source import Answers, Texts

MOST_DIFFERENCE = 1e-4
"""Of a logit, in float32."""
LEAST_EQUAL = 0.99
"""Share of the texts that must have the same label."""
_TEXTS = (
    "I love it.",
    "Never again!",
    "ok",
    "The plot drags, but the acting is superb.",
    "Not bad at all; I would buy it again.",
    "Worst customer service I have ever had to deal with. Two hours on the phone, and nothing was solved.",
    "The battery lasts two days, the screen is bright, and it cost me less than 200 dollars.",
    "Does anyone know when the library opens on Sundays?",
    "Shares of the company fell 4.2% after it reported a loss for the third quarter of 2023.",
    "The committee will meet again on Tuesday to discuss the budget, the new school and the state of the roads.",
    "Scientists found water ice in a crater near the Moon's south pole, where sunlight never reaches.",
    "He scored twice in the second half, and the home side won 3-1.",
    "Mix the flour with two eggs, add a pinch of salt, and let the dough rest for half an hour.",
    "def add(a, b): return a + b",
    "https://example.org/a?b=c&d=1 see also #topic and @someone",
    "THIS IS ALL IN CAPITAL LETTERS AND I AM VERY ANGRY!!!",
    "so gooood 😀😀 thank you ❤️",
    "Der Film war langweilig, aber die Musik hat mir gut gefallen.",
    "Le service était lent et le café froid.",
    "La habitación era pequeña, aunque muy limpia y tranquila.",
    "O produto chegou antes do prazo e funciona muito bem.",
    "Отличный фильм, советую всем посмотреть.",
    "Η παράσταση ήταν υπέροχη.",
    "这家酒店的房间很干净，服务员也很热情，下次还会来。",
    "质量太差了，用了两天就坏了。",
    "とても面白い映画でした。また見たいです。",
    "음식이 식어서 나왔고 직원도 불친절했어요.",
    "الخدمة ممتازة والمكان نظيف جدا.",
    "השירות היה איטי והאוכל קר.",
    "यह किताब बहुत अच्छी है।",
    "บริการดีมาก แต่ราคาแพงไปหน่อย",
    "Phim này hay nhưng hơi dài.",
    "Naïve café façade, Ångström, Straße, ﬁnal ½ ①",
    "a text with [SEP] and </s> and <|endoftext|> written in it",
    "1 2 3 4 5 6 7 8 9 10",
    "  white   space \t around \n and between  ",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How an export compares with headstart."""

    texts: int
    difference: float
    """Largest absolute difference of two logits."""
    equal: int | None
    """Texts with the same label; None where numbers are predicted."""

    def __str__(self) -> str:
        labels = "" if self.equal is None else f", {self.equal:,} of them with the same label"
        return f"{self.texts:,} texts{labels}; logits differ by at most {self.difference:.1e}"


def built_in(*, pairs: bool) -> Texts:
    """Return texts of several lengths and scripts; the last ones are longer than most encoders read."""
    texts = [*_TEXTS, " ".join(_TEXTS[:12]), " ".join(_TEXTS), " ".join(4 * _TEXTS)]
    return Texts(texts=texts, pairs=texts[::-1] if pairs else None)


def compare(ours: Answers, theirs: Answers, task: Task) -> Comparison:
    """Compare answers to the same texts; a NaN differs by infinity.

    Raises:
        ExportError: the export has another number of outputs.
    """
    if ours.logits.shape != theirs.logits.shape or len(ours.labels) != len(theirs.labels):
        raise ExportError(f"the export gives logits of the shape {theirs.logits.shape}, and not {ours.logits.shape}")
    difference = float(np.abs(ours.logits.astype(np.float64) - theirs.logits).max(initial=0.0))
    equal = sum(a == b for a, b in zip(ours.labels, theirs.labels, strict=True))
    return Comparison(
        texts=len(ours.labels),
        difference=math.inf if math.isnan(difference) else difference,
        equal=None if task is Task.REGRESSION else equal,
    )


def require_same(comparison: Comparison, *, int8: bool) -> None:
    """Refuse an export that does not say what headstart says.

    Raises:
        ExportError: its logits or, with 8-bit weights, its labels differ by more than is allowed.
    """
    if not int8 and comparison.difference > MOST_DIFFERENCE:
        raise ExportError(f"the export is not kept: {comparison}, and {MOST_DIFFERENCE:g} is allowed")
    if comparison.equal is not None and comparison.equal < LEAST_EQUAL * comparison.texts:
        advice = "; compare more texts with `texts`, or export without `int8`" if int8 else ""
        raise ExportError(f"the export is not kept: {comparison}, and {LEAST_EQUAL:.0%} must have{advice}")
