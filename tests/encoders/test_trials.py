"""A second run loads the encoder without transformers, to the same features; where its file does not hold, as ever."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extracting import run
from headstart.stages.encoders import hf, trials
from headstart.stages.encoders.encoder import Encoder
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.settings import ExtractSettings
from tiny import save_tiny_encoder, tiny_rows

TEXTS = [text for text, _ in tiny_rows(20)]
COMMAND = (
    "import sys; from headstart.__main__ import run\n"
    "run(); print(*(name in sys.modules for name in ('torch', 'transformers')))"
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the trials' files."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What transformers was asked to load."""
    found: list[Any] = []
    original = hf.load_encoder

    def load(*arguments: Any) -> Encoder:
        found.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(hf, "load_encoder", load)
    return found


def features(encoder: Path, out: Path, **options: Any) -> Any:
    return run(TEXTS, out, encoder, label_column=None, **options)[0].features("cls")


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bfloat16"}, {"prefix": "a very ", "max_length": 9}, {"long": "chunks", "max_length": 9}],
)
def test_the_second_run_gives_the_same_bits_without_transformers(
    tiny: Path, tmp_path: Path, kept: Path, loads: list[Any], options: dict[str, Any]
) -> None:
    first, second = (features(tiny, tmp_path / f"{name}.h5", **options) for name in ("first", "second"))
    assert len(loads) == 1 and len(list(kept.iterdir())) == 1
    np.testing.assert_array_equal(first, second)


def test_another_encoder_or_setting_is_loaded_by_transformers(tmp_path: Path, kept: Path, loads: list[Any]) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    features(folder, tmp_path / "1.h5")
    features(folder, tmp_path / "2.h5", max_length=9)
    save_tiny_encoder(folder, seed=1)
    features(folder, tmp_path / "3.h5")
    assert len(loads) == len(list(kept.iterdir())) == 3


def test_each_gpu_has_a_file_of_its_own(tiny: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = EncoderSession(ExtractSettings(encoder=str(tiny))).identity
    found = {trials._path(identity, torch.device("cpu"))}
    for name in ("NVIDIA H100", "NVIDIA A100"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        found.add(trials._path(identity, torch.device("cuda")))
    assert len(found) == 3


def other_vectors(file: Path) -> None:
    with np.load(file) as held:
        fields = dict(held)
    np.savez(file, **{**fields, "feature_cls": fields["feature_cls"] * 1.001})


def other_record(file: Path) -> None:
    with np.load(file) as held:
        fields = dict(held)
    np.savez(file, **{**fields, "packed": np.array(str(fields["packed"]).replace('"width": 32', '"width": 33'))})


def with_pickle(file: Path) -> None:
    np.savez(file, packed=np.array([{}], object))


@pytest.mark.parametrize(
    "harm",
    [
        other_vectors,
        other_record,
        with_pickle,
        lambda file: file.write_bytes(b"mine"),
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: (file.unlink(), file.mkdir()),
    ],
)
def test_a_file_that_does_not_hold_is_no_matter(
    tiny: Path, tmp_path: Path, kept: Path, loads: list[Any], harm: Callable[[Path], Any]
) -> None:
    first = features(tiny, tmp_path / "first.h5")
    (file,) = kept.iterdir()
    harm(file)
    np.testing.assert_array_equal(features(tiny, tmp_path / "second.h5"), first)
    assert len(loads) == 2


def test_nothing_is_kept_where_that_is_not_wanted_or_not_possible(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Any]
) -> None:
    (tmp_path / "file").touch()
    for number, name in enumerate(("", str(tmp_path / "file"))):
        monkeypatch.setenv("HEADSTART_CACHE", name)
        features(tiny, tmp_path / f"{number}.h5")
    monkeypatch.delenv("HEADSTART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    features(tiny, tmp_path / "2.h5")
    assert len(loads) == 3 and len(list((tmp_path / "home" / "headstart").iterdir())) == 1


def test_a_run_with_nothing_to_do_loads_no_torch(tiny: Path, tmp_path: Path, kept: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{text},x\n" for text in TEXTS))
    command = ["extract", str(tmp_path / "t.csv"), "--encoder", str(tiny), "--out", str(tmp_path / "t.h5"), "--quiet"]
    said = [
        subprocess.run([sys.executable, "-c", COMMAND, *command], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [lines.splitlines()[-1] for lines in said] == ["True True", "False False"]
    other = [*command[:5], str(tmp_path / "u.h5"), "--quiet"]
    again = subprocess.run([sys.executable, "-c", COMMAND, *other], capture_output=True, text=True, check=True).stdout
    assert again.splitlines()[-1] == "True False"


def test_an_identity_of_a_named_precision_needs_no_torch(tiny: Path) -> None:
    code = (
        "import sys; from headstart.stages.encoders.session import EncoderSession\n"
        "from headstart.stages.settings import ExtractSettings\n"
        f"print(EncoderSession(ExtractSettings(encoder={str(tiny)!r}, precision='int8')).identity.quantization)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["int8", "False"]
