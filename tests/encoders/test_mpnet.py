"""all-mpnet-base-v2: transformers' own numbers. It has 438 MB, so no test fetches it: name its folder to run this.

HEADSTART_TEST_MPNET=.data/all-mpnet-base-v2 pytest tests/encoders/test_mpnet.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from headstart.stages.encoders.encoder import EncoderSettings
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.hf import load_encoder
from headstart.stages.encoders.packed.backend import PackedCpuBackend
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.settings import Precision

FOLDER = Path(os.environ.get("HEADSTART_TEST_MPNET", ""))


@pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="HEADSTART_TEST_MPNET names no folder of it")
def test_real_texts_get_the_features_of_transformers(vader: list[dict[str, str]]) -> None:
    by_length = sorted((row["text"] for row in vader), key=len)
    texts = [by_length[i] for i in np.linspace(0, len(by_length) - 1, 98).astype(int)]
    texts += [" ".join(by_length[-6:]), " ".join(by_length[-20:])]  # beyond the last bucket, and cut
    settings = EncoderSettings(
        features=parse_features(["cls", "mean"], None),
        device=torch.device("cpu"),
        precision=Precision.FLOAT32,
        prefix="",
        max_length=384,
    )
    encoder = load_encoder(find_encoder(str(FOLDER)), settings)
    assert isinstance(encoder.backend, PackedCpuBackend)
    sequences, _ = encoder.tokenize(texts)
    order = sorted(range(len(texts)), key=lambda row: -len(sequences[row]))
    batches = [order[:2], *(order[start : start + 20] for start in range(2, len(order), 20))]
    model = transformers.AutoModel.from_pretrained(FOLDER).eval()
    for rows in batches:
        found = encoder.backend.encode([sequences[row] for row in rows])
        for place, row in enumerate(rows):
            with torch.inference_mode():
                ids = torch.from_numpy(np.asarray(sequences[row])).long()[None]
                states = model(input_ids=ids).last_hidden_state[0].numpy()
            np.testing.assert_allclose(found["cls"][place], states[0], atol=1e-5, rtol=0)
            np.testing.assert_allclose(found["mean"][place], states.mean(0), atol=1e-5, rtol=0)
