"""The books of the encoder: how many texts went through it, how many did not have to, and what those would have taken.

One pass is one text through the encoder once. Plain values in, plain values out.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderPasses:
    """What a run cost the encoder, and what it spared it.

    Attributes:
        done: Texts that went through the encoder.
        saved: Texts that would have gone through it without a cache, and did not.
        tokens_per_second: The encoder's speed, measured while the cache, or those that its rows came from, were made;
            None where it was not.
        saved_seconds: What the saved passes would have taken at that speed: an estimate, which leaves out the padding
            and the training step that a real loop adds. None where no speed was measured.
    """

    done: int
    saved: int
    tokens_per_second: float | None
    saved_seconds: float | None


def passes_of_extraction(records: Sequence[Mapping[str, Any]], *, since: float) -> EncoderPasses:
    """Of one command of stage one: saved are copies, rows that were there already, and rows from other caches.

    Args:
        records: Of each cache that it was to make.
        since: When it began, in seconds since 1970. A record that is older was found, and its cache cost nothing.
    """
    made = [record for record in records if datetime.datetime.fromisoformat(record["created"]).timestamp() >= since]
    done = sum(record["sequences_encoded"] for record in made)
    tokens = sum(record["tokens"] for record in records) - sum(record["tokens_encoded"] for record in made)
    speed = _speed(records)
    return EncoderPasses(
        done=done,
        saved=sum(record["rows"] for record in records) - done,
        tokens_per_second=speed,
        saved_seconds=tokens / speed if speed else None,
    )


def passes_of_cached(record: Mapping[str, Any], passes: int) -> EncoderPasses:
    """Of work on cached rows, which are taken to be of the cache's mean length: nothing done, so many passes saved."""
    speed = _speed([record])
    mean = record["tokens"] / record["rows"]
    return EncoderPasses(
        done=0, saved=passes, tokens_per_second=speed, saved_seconds=passes * mean / speed if speed else None
    )


def _speed(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens a second, as they were measured while these caches were made."""
    spent = sum(record["measured_seconds"] for record in records)
    return sum(record["measured_tokens"] for record in records) / spent if spent else None
