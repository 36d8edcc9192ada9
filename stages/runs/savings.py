"""How many texts went through the encoder, how many did not have to, and how long those would have taken.

A pass is one text, or one chunk of a long text, that goes through the encoder once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..progress import Action, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderPasses:
    """The encoder passes that a command did and saved."""

    done: int  # texts that went through the encoder
    saved: int  # texts that would have gone through it without a cache, and did not
    tokens_per_second: float | None
    """The encoder's speed, measured while the cache was made, or the caches that its rows were taken from; None if no
    speed was measured."""
    saved_seconds: float | None
    """Estimate of the time for the saved passes at that speed; None if no speed was measured. It leaves out padding and
    the training step, which a loop that encodes in every epoch adds."""


def passes_of_extraction(records: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]) -> EncoderPasses:
    """The passes of one `extract`. Saved are copies of texts, rows that were finished before, and reused rows.

    Args:
        records: The record of each cache.
        outcomes: What the command did to each cache, in the same order. Only a cache that was made cost passes:
            ``sequences_encoded`` and ``tokens_encoded`` of its counts.
    """
    made = [outcome.counts for outcome in outcomes if outcome.action is Action.MADE]
    done = round(sum(counts["sequences_encoded"] for counts in made))
    saved_tokens = sum(record["tokens"] for record in records) - sum(counts["tokens_encoded"] for counts in made)
    speed = _tokens_per_second(records)
    return EncoderPasses(
        done=done,
        saved=sum(record.get("sequences", record["rows"]) for record in records) - done,
        tokens_per_second=speed,
        saved_seconds=saved_tokens / speed if speed else None,
    )


def passes_of_cached(record: Mapping[str, Any], passes: int) -> EncoderPasses:
    """The passes of work on cached rows: none is done and all are saved. Texts count with the cache's mean length."""
    speed = _tokens_per_second([record])
    mean_tokens = record["tokens"] / record["rows"]
    saved_seconds = passes * mean_tokens / speed if speed else None
    return EncoderPasses(done=0, saved=passes, tokens_per_second=speed, saved_seconds=saved_seconds)


def _tokens_per_second(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The encoder's speed while these caches were made; None if it did not run."""
    seconds = sum(record["measured_seconds"] for record in records)
    return sum(record["measured_tokens"] for record in records) / seconds if seconds else None
