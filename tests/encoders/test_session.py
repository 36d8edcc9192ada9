"""An encoder found and loaded once: from settings, or from the identity of features that it gave."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from extracting import settings
from headstart.cache.errors import DamagedError, IdentityError
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.progress import Event, Step
from tiny import save_tiny_encoder


@pytest.fixture(scope="module")
def given(tiny: Path) -> EncoderSession:
    return EncoderSession(settings(tiny, max_length=50, prefix="a ", features=("cls", "mean"), text_pair_column="b"))


def test_it_is_found_and_loaded_when_it_is_needed_and_once(tiny: Path) -> None:
    events: list[Event] = []
    session = EncoderSession(settings(tiny, max_length=50), events.append)
    assert not events and not session.is_loaded
    assert session.identity.features == ("cls",) and not session.is_loaded
    assert session.encoder.widths == {"cls": 32} and session.is_loaded
    assert session.encoder is session.encoder
    assert [e.phase for e in events if isinstance(e, Step)] == ["finding the encoder", "loading the encoder"]


def test_an_identity_finds_its_encoder(given: EncoderSession, tiny: Path, tmp_path: Path) -> None:
    record = given.record()["encoder"]
    session = EncoderSession.from_identity(given.identity, record, where=tmp_path, batch_tokens=7)
    assert session.identity == given.identity
    assert session.encoder.batch_tokens == 7
    texts = (["good film"], ["bad plot"])
    for ours, theirs in zip(session.encoder.tokenize(*texts), given.encoder.tokenize(*texts), strict=True):
        assert ours[0].tolist() == theirs[0].tolist()
    moved = {**record, "folder": str(tmp_path / "moved"), "name": "no/where"}
    assert EncoderSession.from_identity(given.identity, moved, where=tmp_path, encoder=str(tiny)).files.folder == tiny


@pytest.mark.parametrize("field", ["weights_sha256", "config_sha256", "tokenizer_sha256"])
def test_another_encoder_is_refused(given: EncoderSession, tmp_path: Path, field: str) -> None:
    record, changes = given.record()["encoder"], {field: "0" * 64}
    identity: Any = dataclasses.replace(given.identity, **changes)
    with pytest.raises(IdentityError, match=f"is not the one that .*run was made with: they differ in {field}"):
        EncoderSession.from_identity(identity, record, where=tmp_path / "run")
    other = save_tiny_encoder(tmp_path / "other", seed=1)
    with pytest.raises(IdentityError, match="weights_sha256"):
        EncoderSession.from_identity(given.identity, record, where=tmp_path, encoder=str(other))
    with pytest.raises(DamagedError, match="does not say which encoder"):
        EncoderSession.from_identity(given.identity, {}, where=tmp_path)
