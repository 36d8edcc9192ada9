"""The cache: it returns what was written, plain h5py can read it, and every other file is refused."""

from __future__ import annotations

import dataclasses
import json
import mmap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from caches import FACTS, IDENTITY, KINDS, PLAN, RECORD, make_cache
from extracting import seal_again
from headstart.cache.errors import DamagedError, FormatError
from headstart.cache.hashing import digest
from headstart.cache.identity import Identity, differences
from headstart.cache.label_kind import LabelKind
from headstart.cache.layout import read_layout
from headstart.cache.reader import Cache, open_any, open_cache
from headstart.cache.siblings import partial_path
from headstart.cache.writer import CacheWriter, copy_with_labels, kept_blocks
from headstart.stages.verify import verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 5),
    block_rows=st.integers(1, 50),
    storage=st.sampled_from(["float32", "float16"]),
    labelled=st.booleans(),
    numbered=st.booleans(),
    names=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5, unique=True),
)
def test_what_is_written_is_read(
    tmp_path: Path, labelled: bool, numbered: bool, names: list[str], **shape: Any
) -> None:
    path = tmp_path / "cache.h5"
    wrote = make_cache(path, labelled=labelled, numbered=numbered, names=tuple(names), **shape)
    cache = open_cache(path)
    cache.check()
    np.testing.assert_array_equal(cache.features(), wrote["features"].astype(shape["storage"]))
    for name in FACTS:
        np.testing.assert_array_equal(getattr(cache, name), wrote[name])
    for name, present in (("labels", labelled), ("row_numbers", numbered)):
        assert (getattr(cache, name) is None) == (not present)
        if present:
            np.testing.assert_array_equal(getattr(cache, name), wrote[name])
    assert cache.label_names == wrote["label_names"]
    assert cache.identity == IDENTITY
    assert (cache.plan, cache.record) == (PLAN, {**RECORD, "rows": shape["rows"]})
    assert not partial_path(path).exists()


def test_plain_h5py_reads_it_as_the_format_page_says(tmp_path: Path) -> None:
    path = tmp_path / "cache.h5"
    wrote = make_cache(path, numbered=True)
    with h5py.File(path) as file:
        assert file.attrs["label_kind"] == "class"
        np.testing.assert_array_equal(file["rows"][:], wrote["row_numbers"])
        assert (file.attrs["format"], file.attrs["version"], file.attrs["block_rows"]) == ("headstart-cache", 1, 4)
        features = file["features/cls"][:]
        np.testing.assert_array_equal(features, wrote["features"])
        assert [json.loads(file["label_names"][()])[i] for i in file["labels"]] == [
            wrote["label_names"][i] for i in wrote["labels"]
        ]
        assert json.loads(file["identity"][()])["weights_sha256"] == "a" * 64
        for block, (start, stop) in enumerate([(0, 4), (4, 8), (8, 10)]):
            row_metadata = ("hashes/text", "hashes/tokens", "lengths", "cut")
            parts = [features[start:stop], *(file[name][start:stop] for name in row_metadata)]
            content = np.array([start, stop], "<u8").tobytes() + b"".join(part.tobytes() for part in parts)
            assert file["checksums/blocks"][block].tobytes() == digest(content)
            for name in ("labels", "rows"):
                content = np.array([start, stop, *file[name][start:stop]], "<u8").tobytes()
                assert file[f"checksums/{name}"][block].tobytes() == digest(content)


def test_features_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache.h5")
    features = open_cache(tmp_path / "cache.h5").features()
    assert isinstance(features.base, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        features[0] = 0


def test_writing_rows_leaves_the_structure_byte_for_byte(tmp_path: Path) -> None:
    """So a kill during a write cannot damage the structure."""
    path = partial_path(tmp_path / "cache.h5")
    make_cache(tmp_path / "cache.h5", finish=False, blocks=[])
    before = outside_datasets(path)
    make = CacheWriter(path)
    zeros = np.zeros((4, 16), np.uint8)
    row_metadata = {"lengths": np.ones(4, np.int32), "truncated": np.zeros(4, np.uint8)}
    make.write_block(0, features={"cls": np.ones((4, 3))}, text_hashes=zeros, token_hashes=zeros, **row_metadata)
    make.finish(RECORD, tmp_path / "cache.h5")
    assert outside_datasets(tmp_path / "cache.h5") == before


def outside_datasets(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    for span in read_layout(path)[1].values():
        content[span.offset : span.offset + span.nbytes] = bytes(span.nbytes)
    return bytes(content)


def test_a_record_that_lacks_what_is_shown_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache.h5", finish=False)
    with CacheWriter(partial_path(tmp_path / "cache.h5")) as writer:
        writer.finish({**RECORD, "encoder": "bert"}, tmp_path / "cache.h5")
    with pytest.raises(DamagedError, match="its record: its 'encoder' is not a JSON object"):
        open_cache(tmp_path / "cache.h5")


def test_an_unfinished_cache_is_refused_and_knows_its_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "cache.h5"
    wrote = make_cache(path, finish=False, blocks=[0, 2])
    with pytest.raises(FormatError, match="not finished"):
        open_cache(partial_path(path))
    cache = open_any(partial_path(path))
    assert [cache.block_holds(block) for block in range(3)] == [True, False, True]
    table = wrote["text_hashes"].copy()
    assert kept_blocks(cache, table) == ([0, 2], [])
    table[9] ^= 1
    assert kept_blocks(cache, table) == ([0], [2])


@pytest.mark.parametrize(
    "dataset",
    ["features/cls", "hashes/text", "hashes/tokens", "checksums/blocks", "labels", "rows", "checksums/rows"],
)
def test_a_flipped_bit_is_found_and_located(tmp_path: Path, dataset: str) -> None:
    path = tmp_path / "cache.h5"
    make_cache(path, numbered=True)
    span = read_layout(path)[1][dataset]
    flip(path, span.offset + span.nbytes - 1)
    cache = open_cache(path)
    assert cache.damaged_blocks() == [2]
    with pytest.raises(DamagedError, match=r"1 of 3 blocks are damaged, the first at rows 9 to 10"):
        cache.check()


@pytest.mark.parametrize("document", ["identity", "plan", "label_names", "record"])
def test_a_flipped_bit_in_a_document_is_found(tmp_path: Path, document: str) -> None:
    path = tmp_path / "cache.h5"
    make_cache(path)
    flip(path, read_layout(path)[1][document].offset + 2)
    with pytest.raises(DamagedError, match=f"its {document} is damaged"):
        open_cache(path)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.h5"
    with pytest.raises(FormatError, match="does not exist"):
        open_cache(path)
    path.write_text("text,label\n")
    with pytest.raises(FormatError, match="not a headstart cache"):
        open_cache(path)
    with h5py.File(path, "w") as file:
        file["features/cls"] = np.zeros((3, 2))
    with pytest.raises(FormatError, match="not a headstart cache"):
        open_cache(path)
    with pytest.raises(FormatError, match="is a folder"):
        open_cache(tmp_path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache.h5")
    seal_again(tmp_path / "cache.h5", version=2)
    with pytest.raises(FormatError, match="version 2, and this headstart reads version 1"):
        open_cache(tmp_path / "cache.h5")


@pytest.mark.parametrize("kind", ["spans", 7, None])
def test_labels_of_a_kind_to_come_are_no_damage(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "cache.h5"
    make_cache(path)
    with h5py.File(path, "r+") as file:
        replace_dataset(file, "labels", np.zeros((10, 3), np.uint8))
        file.attrs["label_kind"] = str(kind)
    seal_again(path, label_kind=kind)
    with pytest.raises(FormatError, match=f"labels of the kind '{kind}', .* nothing can be trained on it: upgrade"):
        open_cache(path)


def test_what_a_later_version_may_add_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "cache.h5"
    wrote = make_cache(path)
    with h5py.File(path, "r+") as file:
        file["weights"], file["features"].attrs["more"] = np.ones(10), "more"
        file.attrs["more"] = "more"
        file.create_group("more/inside")["links"] = h5py.ExternalLink("elsewhere.h5", "/x")
    seal_again(path, more={"of": "it"})
    cache = open_cache(path)
    cache.check()
    np.testing.assert_array_equal(cache.features(), wrote["features"])


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.h5"
    make_cache(path)
    content = path.read_bytes()
    for length in np.random.default_rng(0).integers(len(content), size=100):
        path.write_bytes(content[:length])
        with pytest.raises((DamagedError, FormatError)):
            open_cache(path)


def replace_dataset(file: h5py.File, name: str, value: Any, **how: Any) -> None:
    del file[name]
    file.create_dataset(name, data=value, **how)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: replace_dataset(f, "labels", np.zeros(9, "<i8")), "'labels' is int64 of shape"),
        (lambda f: replace_dataset(f, "features/cls", np.zeros((9, 3), "<f4")), "'features/cls' is float32 of shape"),
        (lambda f: replace_dataset(f, "features/cls", np.zeros((10, 3), "<f8")), "features are"),
        (
            lambda f: replace_dataset(f, "features/cls", np.zeros((10, 3), "<f4"), chunks=(2, 3)),
            "not stored contiguously",
        ),
        (lambda f: f.__delitem__("hashes/tokens"), "lacks the dataset 'hashes/tokens'"),
        (lambda f: f.__delitem__("identity"), "lacks a document"),
        (lambda f: f.__delitem__("checksums"), "lacks the group 'checksums'"),
        (lambda f: f.__setitem__("features/" + "n" * 200, np.zeros(3)), "not a valid name of a feature"),
        (lambda f: f.__setitem__("features/a b", np.zeros(3)), "not a valid name of a feature"),
        (lambda f: [f.__setitem__(f"features/x{n}", np.zeros(3)) for n in range(600)], "512 is the maximum"),
        (lambda f: replace_dataset(f, "lengths", np.zeros(10, [("a", "<i4")])), "'lengths' is"),
        (lambda f: replace_dataset(f, "lengths", ["long"] * 10, dtype=h5py.string_dtype()), "'lengths' is object"),
        (lambda f: f.move("cut", "away") or f.__setitem__("cut", h5py.SoftLink("/cut")), "is a link"),
    ],
)
def test_a_wrong_structure_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "cache.h5"
    make_cache(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DamagedError, match=r"has grown|cut short|structure is damaged"):
        open_cache(path)
    seal_again(path)
    with pytest.raises(DamagedError, match=message):
        open_cache(path)


def test_nothing_outside_the_file_is_read_through_it(tmp_path: Path) -> None:
    path, other = tmp_path / "cache.h5", tmp_path / "other.h5"
    make_cache(path)
    with h5py.File(other, "w") as file:
        file["secret"] = np.zeros((10, 3), "<f4")
    with h5py.File(path, "r+") as file:
        del file["features/cls"]
        file["features/cls"] = h5py.ExternalLink(str(other), "secret")
    seal_again(path)
    with pytest.raises(DamagedError, match="is a link"):
        open_cache(path)
    (tmp_path / "raw").write_bytes(bytes(120))
    with h5py.File(path, "r+") as file:
        del file["features/cls"]
        file.create_dataset("features/cls", (10, 3), "<f4", external=[(str(tmp_path / "raw"), 0, 120)])
    seal_again(path)
    with pytest.raises(DamagedError, match="not stored contiguously in this file"):
        open_cache(path)
    virtual = h5py.VirtualLayout((10, 3), "<f4")
    virtual[:] = h5py.VirtualSource(str(other), "secret", (10, 3))
    with h5py.File(path, "r+") as file:
        del file["features/cls"]
        file.create_virtual_dataset("features/cls", virtual)
    seal_again(path)
    with pytest.raises(DamagedError, match="not stored contiguously in this file"):
        open_cache(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "one"}, "its content is impossible"),
        ({"block_rows": 0}, "its content is impossible"),
        ({"block_rows": 1.5}, "its content is impossible"),
        ({"datasets": [[0, 100]]}, "its content is impossible"),
        ({"datasets": [[20000, 30000], [25000, 35000]]}, "its content is impossible"),
        ({"datasets": [[1 << 70, 1 << 71]]}, "its content is impossible"),
        ({"datasets": 7}, "cannot be understood"),
        ({"bytes": 1 << 62}, "its content is impossible"),
        ({"structure": None}, "its content is impossible"),
        ({"structure": "00"}, "structure is damaged"),
    ],
)
def test_a_seal_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_cache(tmp_path / "cache.h5")
    seal_again(tmp_path / "cache.h5", **changes)
    with pytest.raises(DamagedError, match=message):
        open_cache(tmp_path / "cache.h5")


def test_attributes_are_not_read(tmp_path: Path) -> None:
    """Whatever their size and type are."""
    path = tmp_path / "cache.h5"
    make_cache(path)
    with h5py.File(path, "r+") as file:
        for name in ("format", "version", "block_rows"):
            file.attrs[name] = "long" * (1 << 20)
    seal_again(path)
    assert open_cache(path).rows == 10


def test_unknown_additions_are_left_alone(tmp_path: Path) -> None:
    """A later version may add datasets."""
    path = tmp_path / "cache.h5"
    make_cache(path)
    with h5py.File(path, "r+") as file:
        file["shards/0"] = np.zeros(3)
    seal_again(path)
    assert open_cache(path).rows == 10


@pytest.mark.parametrize(
    ("field", "value"), [("rows", 11), ("created", "some day"), ("seconds", float("inf")), ("tokens", -1)]
)
def test_a_record_of_what_cannot_be_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    make_cache(tmp_path / "cache.h5", finish=False)
    with CacheWriter(partial_path(tmp_path / "cache.h5")) as writer:
        writer.finish({**RECORD, field: value}, tmp_path / "cache.h5")
    with pytest.raises(DamagedError, match="its record"):
        open_cache(tmp_path / "cache.h5")


def test_a_copy_bears_other_labels_and_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "cache.h5"
    wrote = make_cache(path)
    names = tuple(f"name {i}" for i in range(200))
    labels = np.arange(10)
    partial = partial_path(path)
    assert copy_with_labels(open_cache(path), partial, labels=labels, label_names=names) == []
    with CacheWriter(partial) as writer:
        writer.finish(RECORD, path)
    cache: Cache = open_cache(path)
    cache.check()
    np.testing.assert_array_equal(cache.features(), wrote["features"])
    np.testing.assert_array_equal(cache.labels, labels)
    assert cache.label_names == names


def test_identities_differ_by_named_fields() -> None:
    other = Identity.from_dict({**json.loads(IDENTITY.to_json()), "max_length": 64, "precision": "bfloat16"}, "here")
    assert differences(IDENTITY, IDENTITY, our_name="a", their_name="b") == []
    assert differences(IDENTITY, other, our_name="a", their_name="b") == [
        "max_length (a: 128, b: 64)",
        "precision (a: 'float32', b: 'bfloat16')",
    ]


OWN = {"model": "mean", "modules_sha256": "d" * 64, "features": ["model"]}


def changed(change: dict[str, Any]) -> dict[str, Any]:
    return {**json.loads(IDENTITY.to_json()), **change}


@pytest.mark.parametrize(
    "change",
    [
        OWN,
        {**OWN, "model": "cls+max | dense 384 256 tanh | layernorm | normalize", "features": ["cls", "model"]},
        {**OWN, "prefix": "query: ", "prefix_pooled": False},
        {"long": "chunks", "overlap": 32, "chunk_pooling": "mean"},
        {"long": "head-tail", "truncation_side": "left", "lower_case": True},
    ],
)
def test_an_identity_is_read_as_it_was_written(change: dict[str, Any]) -> None:
    identity = Identity.from_dict(changed(change), "here")
    assert Identity.from_dict(json.loads(identity.to_json()), "here") == identity != IDENTITY


@pytest.mark.parametrize(
    "change",
    [
        *({"weights_sha256": "abc"}, {"max_length": True}, {"features": "cls"}, {"prefix": None}, {"long": None}),
        *({"lower_case": 1}, {"precision": None}, {"overlap": -1}, {"truncation_side": ["left"]}, {"long": {}}),
        *({**OWN, "model": None}, {**OWN, "modules_sha256": None}, {**OWN, "features": ["cls"]}),
        *({**OWN, "model": "Mean"}, {**OWN, "model": "mean |"}),
        *({"model": "mean"}, {"modules_sha256": "d" * 64}),  # which no feature has
        *({"overlap": 1}, {"long": "chunks"}, {"chunk_pooling": "max"}),
        {"long": "chunks", "chunk_pooling": "max", "overlap": 128},
        *({"prefix_pooled": False, "prefix": "a"}, {**OWN, "prefix_pooled": False}),
    ],
)
def test_an_impossible_identity_is_damage(change: dict[str, Any]) -> None:
    with pytest.raises(DamagedError):
        Identity.from_dict(changed(change), "here")


@pytest.mark.parametrize(
    "change", [{"pooling": "max"}, {"quantization": "int4"}, {"long": "summary"}, {"precision": "float8"}]
)
def test_what_a_newer_version_may_say_asks_for_an_upgrade(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r"does not know.*upgrade headstart"):
        Identity.from_dict(changed(change), "here")


def test_an_identity_before_the_release_asks_to_extract_again() -> None:
    """Which fields were missing from the start is damage."""
    fields = changed({})
    old = {name: fields[name] for name in fields if name.endswith("_sha256") and name != "modules_sha256"}
    old |= {name: fields[name] for name in ("prefix", "pairs", "max_length", "precision", "features")}
    with pytest.raises(
        FormatError, match=r"before version 1 of the format was released; make it again with `overwrite=True`"
    ):
        Identity.from_dict(old, "here")
    with pytest.raises(DamagedError, match=r"lacks .*prefix"):
        Identity.from_dict({name: old[name] for name in old if name != "prefix"}, "here")


def test_one_feature_s_identity_has_what_decides_that_feature() -> None:
    both = Identity.from_dict(
        changed({**OWN, "features": ["cls", "model"], "prefix": "a", "prefix_pooled": False}), "here"
    )
    assert both.narrowed("model") == dataclasses.replace(both, features=("model",))
    assert both.narrowed("cls") == dataclasses.replace(IDENTITY, prefix="a")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> LabelKind:
    return LabelKind(request.param)


def test_labels_come_back_as_plain_h5py_reads_them(tmp_path: Path, kind: LabelKind) -> None:
    labels, names = KINDS[kind]
    path = tmp_path / "c.h5"
    make_cache(path, labels=labels, label_names=names, label_kind=kind)
    cache = open_cache(path)
    cache.check()
    assert (cache.label_kind, cache.label_names) == (kind, names)
    assert cache.labels is not None and np.array_equal(cache.labels, labels)
    with h5py.File(path) as file:
        assert file.attrs["label_kind"] == kind and np.array_equal(file["labels"][:], labels)
        assert file["labels"].dtype == {"multi-label": "u1", "ordinal": "<i8", "number": "<f8"}[kind]
        assert names is None or tuple(json.loads(file["label_names"][()])) == names
        assert ("label_names" in file) == (names is not None)
    expected = {"multi-label": {"a": 2, "b": 3, "c": 3}, "ordinal": {"low": 4, "mid": 3, "high": 3}, "number": None}
    assert cache.label_counts() == expected[kind]


@pytest.mark.parametrize(
    ("kind", "value"), [("multi-label", 2), ("ordinal", 3), ("ordinal", -1), ("number", np.nan), ("number", np.inf)]
)
def test_a_value_that_is_no_label_is_found(tmp_path: Path, kind: str, value: float) -> None:
    labels, names = KINDS[LabelKind(kind)]
    wrong = np.array(labels, np.float64 if kind == "number" else np.int64)
    wrong.reshape(-1)[4] = value
    path = tmp_path / "c.h5"
    make_cache(path, labels=wrong, label_names=names, label_kind=LabelKind(kind))
    what = "not a finite number" if kind == "number" else "a label is outside 0 to"
    with pytest.raises(DamagedError, match=what):
        open_cache(path).check()
    (finding,) = verify(path).findings
    assert what in finding.what and not finding.damage


def test_names_must_fit_the_labels(tmp_path: Path) -> None:
    labels, _ = KINDS[LabelKind.MULTI_LABEL]
    make_cache(tmp_path / "few.h5", labels=labels, label_names=("a", "b"), label_kind=LabelKind.MULTI_LABEL)
    with pytest.raises(DamagedError, match="has 2 label names, and labels of 3 columns"):
        open_cache(tmp_path / "few.h5")
    make_cache(tmp_path / "c.h5")
    seal_again(tmp_path / "c.h5", label_kind="number")
    with pytest.raises(DamagedError, match="'labels' is int64 of shape"):
        open_cache(tmp_path / "c.h5")
    make_cache(tmp_path / "n.h5", labels=np.zeros(10), label_names=("a",), label_kind=LabelKind.NUMBER)
    with pytest.raises(DamagedError, match="label names"):
        open_cache(tmp_path / "n.h5")
