"""The encoders most used: a tiny copy of each gives transformers' own vector, or is refused as the page says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import survey
from headstart.cache.reader import open_cache
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.extract import extract
from recipes import BY_HAND, Array, states
from safetensors.numpy import load_file
from survey import ROWS, TEXTS, Row
from test_bad_inputs import AS_PINNED
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SHOWN = {shown.split(" | ")[0]: shown for shown in survey.PAGE.read_text(encoding="utf-8").splitlines() if "|" in shown}


def by_hand(row: Row, folder: Path, texts: list[str]) -> Array:
    """What transformers gives for each text alone, pooled and followed by the modules."""
    assert row.max_length is not None
    if (row.transformer or {}).get("do_lower_case"):
        texts = [text.lower() for text in texts]
    vectors = np.stack([BY_HAND[row.pooling or "cls"](tokens) for tokens in states(folder, texts, row.max_length)])
    for number, (kind, fields) in enumerate(row.modules, start=2):
        if kind == "Dense":
            weights = load_file(folder / f"{number}_Dense" / "model.safetensors")
            vectors = vectors @ weights["linear.weight"].T + weights.get("linear.bias", 0)
            vectors = np.tanh(vectors) if fields["activation_function"] == survey.TANH else vectors
        else:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def sentence_transformer(folder: Path) -> Any:
    """The encoder in sentence-transformers; None where that is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    return SentenceTransformer(str(folder), device="cpu")


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether this transformers has the architecture, or is never asked for it."""
    return survey.needs_code(config) or config["model_type"] in (*CONFIG_MAPPING, "model2vec")


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_each_is_encoded_as_its_files_say_or_refused(row: Row, tmp_path: Path) -> None:
    if not is_known(row.config):
        pytest.skip(f"this transformers lacks {row.config['model_type']}")
    folder = tmp_path / "encoder"
    done, cache = survey.encode(row, folder)
    shown, line = SHOWN[f"| {row.name}"], survey.line(row, done)
    if not AS_PINNED:  # an older transformers may compute something else than the packed pass does
        shown, line = (text.replace("| padded", "| packed") for text in (shown, line))
    assert line == shown, "python tests/survey.py writes the page"
    if cache is None:
        return
    assert cache.identity.max_length == row.max_length and cache.identity.prefix == ""
    name, prompt = next(iter(row.prompts.items()), (None, ""))
    prompted = [prompt + text for text in TEXTS]
    plain, after_prompt = np.split(by_hand(row, folder, [*TEXTS, *prompted]), 2)
    vectors = [(None, cache.features(), plain)]
    if name is not None:
        again = extract(TEXTS, tmp_path / "prompted.h5", survey.settings(folder, prompt=name))
        vectors.append((name, open_cache(again).features(), after_prompt))
    other = sentence_transformer(folder) if row.pooling else None
    for name, ours, theirs in vectors:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        if other is not None:
            encoded = other.encode(TEXTS, prompt_name=name, show_progress_bar=False)
            np.testing.assert_allclose(ours, encoded, atol=1e-5)
    for name, prompt in row.prompts.items():
        assert EncoderSession(survey.settings(folder, prompt=name)).encoder_settings.prefix == prompt


def test_the_page_has_every_encoder_once_and_no_other() -> None:
    assert len(SHOWN) == len(ROWS) + 2 and len(ROWS) >= 20  # and the head of the table
