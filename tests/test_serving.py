"""The recipe of docs/serving.md, run as it stands on the page."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pytest
from extracting import run
from headstart.stages.settings import TrainSettings
from headstart.stages.train_head import train_head
from tiny import tiny_rows

fastapi = pytest.importorskip("fastapi", reason="the extra dev-report has it")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving.md"
TEXTS = [text for text, _ in tiny_rows(40)]


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's code defines, of a run in the current folder."""
    folder = tmp_path_factory.mktemp("serving")
    texts, labels = zip(*tiny_rows(60), strict=True)
    run({"text": list(texts), "label": list(labels)}, folder / "c.h5", tiny)
    train_head(folder / "c.h5", folder / "run", TrainSettings(solver="sgd", epochs=2))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_recipe_answers_as_the_classifier_does(served: dict[str, Any]) -> None:
    from fastapi.testclient import TestClient

    client, model = TestClient(served["app"]), served["model"]
    for text in TEXTS[:3]:
        answer = client.post("/predict", json={"text": text}).json()
        assert answer["label"] == model.predict(text)
        assert list(answer["probabilities"]) == model.classes_.tolist()
        np.testing.assert_allclose(list(answer["probabilities"].values()), model.predict_proba(text), atol=1e-6)
    for bad in ({"text": " "}, {"text": 3}, {}):
        assert client.post("/predict", json=bad).status_code == 422
    assert "is blank" in client.post("/predict", json={"text": " "}).json()["detail"]


def test_requests_that_come_together_share_a_batch(served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a batch that failed, whose own requests alone are answered with an error."""
    import httpx

    model, original = served["model"], served["model"].outputs
    batches: list[int] = []

    def outputs(sequences: Any, *rest: Any) -> Any:
        batches.append(len(sequences))
        if len(batches) == 1:
            raise headstart.HeadstartError("no memory")
        return original(sequences, *rest)

    monkeypatch.setattr(model, "outputs", outputs)

    async def ask_all() -> list[Any]:
        transport = httpx.ASGITransport(served["app"], raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/predict", json={"text": text}) for text in TEXTS))

    answers = asyncio.run(ask_all())
    assert sum(batches) == len(TEXTS) and len(batches) <= 3, batches
    failed = [answer for answer in answers if answer.status_code == 500]
    assert len(failed) == batches[0]
    expected = dict(zip(TEXTS, model.predict(TEXTS).tolist(), strict=True))
    for text, answer in zip(TEXTS, answers, strict=True):
        assert answer.status_code == 500 or answer.json()["label"] == expected[text]
