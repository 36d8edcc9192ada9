"""The files of an encoder, and its identity: whatever is read from its folder is hashed, and fetched from the hub."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import fnmatch
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
from extracting import run, settings
from headstart.cache.errors import EncoderError
from headstart.stages.encoders import files as encoder_files
from headstart.stages.encoders.files import UNREAD, find_encoder
from headstart.stages.encoders.session import EncoderSession
from recipes import in_subfolder, with_recipe
from tiny import WORDS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<mask>"]
IGNORED = {
    *("README.md", "LICENSE.txt", ".gitattributes", ".git/HEAD", "plot.png", "train.py", "trainer_state.json"),
    *("optimizer.pt", "training_args.bin", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
    *("model.onnx", "onnx/model.onnx", "openvino/openvino_model.xml", "model.gguf", "model.fp16.safetensors"),
    *("eval/results.json", "checkpoint-5/vocab.txt", "1_Pooling/README.md", "cache.h5", "cache.h5.lock"),
    *("p.csv.headstart-lock", "cache.headstart-partial"),
}
MODULES = {"modules.json", "1_Pooling/config.json", "1_Pooling/of.an.unknown.kind", "1_Pooling/inside/it"}
"""Hashed where the feature is the encoder's own vector."""
TEXTS = {"sentence_bert_config.json", "config_sentence_transformers.json"}
"""Not hashed: what they say is in the identity."""
HASHED = {
    *("chat_template.jinja", "spm.model", "sentence_unknown_config.json"),
    *("generation_config.json", "of.an.unknown.kind", "additional_chat_templates/one.jinja"),
}


def put(folder: Path, names: set[str]) -> Path:
    """Write files of these names into a folder, beside what is in it."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}" if name in TEXTS else name)
    if "modules.json" in names:
        paths = ["", "1_Pooling", "../outside", "/etc"]
        (folder / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    return folder


def whole(tiny: Path, folder: Path) -> Path:
    """A tiny encoder's folder with much beside it, as a repository is when it is downloaded whole."""
    return put(Path(shutil.copytree(tiny, folder)), IGNORED | HASHED | MODULES | TEXTS)


def names(folder: Path, files: Iterable[Path]) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in files}


def hashed(folder: Path) -> set[str]:
    """The names of the files of the tokenizer's hash."""
    return names(folder, find_encoder(str(folder)).tokenizer)


def hashes(folder: Path) -> dict[str, str]:
    """The hashes of an identity that has the feature ``model``."""
    files = find_encoder(str(folder))
    return {**files.hashes(), "modules_sha256": files.modules_sha256()}


def test_every_file_is_hashed_but_those_that_are_known_to_be_something_else(tiny: Path, tmp_path: Path) -> None:
    ours = hashed(tiny)
    folder = whole(tiny, tmp_path / "whole")
    assert hashed(folder) == ours | HASHED
    assert names(folder, find_encoder(str(folder)).modules) == MODULES
    before = hashes(folder)
    for name in IGNORED | TEXTS:
        (folder / name).write_text("other")
        assert hashes(folder) == before, name
    for name in (HASHED | MODULES) - {"modules.json"}:
        kept, field = (folder / name).read_text(), "tokenizer_sha256" if name in HASHED else "modules_sha256"
        (folder / name).write_text("other")
        after = hashes(folder)
        assert {one for one in before if before[one] != after[one]} == {field}, name
        (folder / name).write_text(kept)
    kept = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(kept + " ")
    assert find_encoder(str(folder)).hashes() == {name: before[name] for name in before if name != "modules_sha256"}
    assert hashes(folder) != before


def test_the_hash_is_the_one_that_the_format_specifies(tiny: Path) -> None:
    names = sorted(path.name for path in tiny.iterdir() if path.name not in ("config.json", "model.safetensors"))
    lines = "".join(f"{hashlib.sha256((tiny / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    found = find_encoder(str(tiny)).hashes()
    assert found["tokenizer_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert found["config_sha256"] == hashlib.sha256((tiny / "config.json").read_bytes()).hexdigest()


def test_the_format_lists_what_is_not_hashed() -> None:
    text = (Path(__file__).parents[2] / "cache" / "FORMAT.md").read_text(encoding="utf-8")
    assert [pattern for pattern in UNREAD if f"`{pattern}`" not in text] == []


def test_a_name_that_is_not_utf8_is_hashed(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "odd")
    with contextlib.suppress(OSError):  # some file systems refuse the name
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("x")
    assert len(find_encoder(str(folder)).hashes()["tokenizer_sha256"]) == 64


def test_every_file_that_a_tokenizer_class_declares_is_hashed() -> None:
    import transformers

    declared: set[str] = set()
    for module in Path(transformers.__file__).parent.rglob("tokenization_*.py"):  # some cannot be imported here
        nodes = list(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
        for node in (node for node in nodes if isinstance(node, ast.Assign)):
            if any(isinstance(to, ast.Name) and to.id.lower() == "vocab_files_names" for to in node.targets):
                declared |= {value.value for value in ast.walk(node.value) if isinstance(value, ast.Constant)}
            elif isinstance(node.value, ast.Constant) and "_FILE" in ast.unparse(node.targets[0]):
                declared.add(node.value.value)
    assert declared >= {"spm.model", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model", "tokenizer.json"}
    assert declared >= {"vocab.txt", "bpe.codes", "dict.txt", "special_tokens_map.json", "added_tokens.json"}
    assert not {name for name in declared for pattern in UNREAD if fnmatch.fnmatchcase(str(name), pattern)}


def word_piece(folder: Path, kind: str) -> None:
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]))


def vocab_and_merges(folder: Path, kind: str) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet, "th", "the", "Ġthe"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")


def saved(folder: Path, kind: str) -> None:
    """tokenizer.json, and nothing else."""
    vocabulary = list(dict.fromkeys([*SPECIAL, *WORDS, *LETTERS]))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    model = {
        "WordPiece": lambda: tokenizers.models.WordPiece(numbers, unk_token="[UNK]"),
        "BPE": lambda: tokenizers.models.BPE(numbers | {"th": len(numbers)}, [("t", "h")], unk_token="[UNK]"),
        "Unigram": lambda: tokenizers.models.Unigram([(word, -1.0) for word in vocabulary], unk_id=7),
    }[kind]()
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def sentence_piece(folder: Path, name: str) -> None:
    """A model of sentencepiece, under the name that a tokenizer class reads."""
    pytest.importorskip("google.protobuf")
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    text = folder.parent / "text.txt"
    text.write_text("\n".join(" ".join([*WORDS, *LETTERS]) for _ in range(50)))
    special = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    trainer.train(
        **special,
        **ids,
        input=str(text),
        model_prefix=str(folder.parent / "piece"),
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    shutil.move(folder.parent / "piece.model", folder / name)


KINDS: dict[str, tuple[str, str, Callable[[Path, str], None]]] = {
    "vocab.txt": ("BertModel", "", word_piece),
    "vocab.json and merges.txt": ("RobertaModel", "", vocab_and_merges),
    "WordPiece": ("BertModel", "WordPiece", saved),
    "BPE": ("BertModel", "BPE", saved),
    "Unigram": ("BertModel", "Unigram", saved),
    "spiece.model": ("AlbertModel", "spiece.model", sentence_piece),
    "spm.model": ("DebertaV2Model", "spm.model", sentence_piece),
    "sentencepiece.bpe.model": ("XLMRobertaModel", "sentencepiece.bpe.model", sentence_piece),
    "sentencepiece.model": ("RemBertModel", "sentencepiece.model", sentence_piece),
}
"""Of each kind of a tokenizer: the class of a model that has it, and what makes its files."""


def save_model(folder: Path, kind: str) -> Path:
    import transformers

    model = getattr(transformers, kind)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"input_embedding_size": 32, "embedding_size": 32}
    model(model.config_class(**sizes, vocab_size=400, max_position_embeddings=130)).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[set[str]]:
    """The names of files in a folder that are opened, by Python or by anything else; Linux tells."""
    libc, names = ctypes.CDLL(None, use_errno=True), set[str]()
    folders = [folder, *filter(Path.is_dir, folder.rglob("*"))]
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    watched = {libc.inotify_add_watch(descriptor, os.fsencode(inner), 0x20): inner for inner in folders}  # IN_OPEN
    try:
        yield names
        with contextlib.suppress(BlockingIOError):
            while events := os.read(descriptor, 1 << 16):
                while events:
                    watch, mask, _, length = struct.unpack("iIII", events[:16])
                    name = os.fsdecode(events[16 : 16 + length].rstrip(b"\0"))
                    if not mask & 0x40000000:  # of a folder
                        names.add((watched[watch] / name).relative_to(folder).as_posix())
                    events = events[16 + length :]
    finally:
        os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files are opened")
@pytest.mark.parametrize("kind", KINDS)
def test_one_byte_of_any_file_that_is_read_is_another_identity(kind: str, tmp_path: Path) -> None:
    model, name, make = KINDS[kind]
    folder = save_model(tmp_path / "encoder", model)
    make(folder, name)
    files = find_encoder(str(put(folder, (IGNORED | HASHED) - {"spm.model"})))
    before = files.hashes()
    session = EncoderSession(settings(folder, max_length=50))
    assert session.identity.tokenizer_sha256 == before["tokenizer_sha256"]
    with opened(folder) as read:
        assert len(session.encoder.tokenize(["the good film"])[0][0]) > 1
    assert read >= {"config.json", "model.safetensors", *({kind} if "." in kind and " " not in kind else ())}
    assert not read & IGNORED
    for name in sorted(read):
        content = (folder / name).read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            (folder / name).write_bytes(changed)
            assert files.hashes() != before, name
        (folder / name).write_bytes(content)
    assert files.hashes() == before


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for a repository on the hub: what is asked for is copied into a snapshot."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    repository, snapshot = tmp_path / "repository", tmp_path / "snapshots" / "0123"

    def download(name: str, *, revision: str | None, **patterns: Any) -> str:
        assert name == "some/encoder" and revision in (None, snapshot.name)
        names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
        for file in filter_repo_objects(names, **patterns):
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, snapshot / file)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return repository


def test_the_hub_gives_what_a_folder_that_is_downloaded_whole_does(hub: Path, tiny: Path, tmp_path: Path) -> None:
    put(whole(tiny, hub), {"1_Pooling/model.safetensors"})  # it stands for a module with weights
    found = find_encoder("some/encoder")
    assert found.revision == "0123" and found.hashes() == find_encoder(str(hub)).hashes()
    fetched = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    weights = {"model.safetensors", "1_Pooling/model.safetensors"}
    assert fetched == hashed(tiny) | HASHED | MODULES | TEXTS | {"config.json"} | weights


def test_the_hub_gives_a_folder_inside_that_transformers_reads(hub: Path, tiny: Path, tmp_path: Path) -> None:
    made = in_subfolder(with_recipe(tiny, tmp_path / "made"))
    expected = find_encoder(str(made)).hashes()
    split = split_pickle(made / "0_Transformer")
    shutil.copytree(made, hub)
    found = find_encoder("some/encoder", allow_pickled_weights=True)
    assert found.folder.name == "0123" and found.model == found.folder / split.name
    assert [path.name for path in found.weights] == [INDEX, *SHARDS]
    assert found.hashes() == find_encoder(str(made), allow_pickled_weights=True).hashes()
    assert {**found.hashes(), "weights_sha256": ""} == {**expected, "weights_sha256": ""}


def test_a_folder_without_a_transformer_says_what_makes_its_vectors(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "static"
    folder.mkdir()
    kind = "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": kind}]))
    with pytest.raises(EncoderError, match=r"no config\.json; its vectors are made by StaticEmbedding, which"):
        find_encoder(str(folder))


def test_the_hub_is_asked_for_pickles_only_where_they_are_allowed(hub: Path, tiny: Path) -> None:
    shutil.copytree(tiny, hub)
    split_pickle(hub)
    with pytest.raises(EncoderError, match="holds no weights"):
        find_encoder("some/encoder")
    found = find_encoder("some/encoder", allow_pickled_weights=True)
    assert [path.name for path in found.weights] == [INDEX, *SHARDS] and found.pickled


INDEX, SHARDS = "pytorch_model.bin.index.json", ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


def split_pickle(folder: Path) -> Path:
    """Put the weights into two pickles."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    homes = {name: SHARDS[number % 2] for number, name in enumerate(weights)}
    for shard in SHARDS:
        torch.save({name: weight for name, weight in weights.items() if homes[name] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))
    (folder / "model.safetensors").unlink()
    return folder


def test_pickles_in_several_files_give_the_features_of_safetensors(tiny: Path, tmp_path: Path) -> None:
    folder = split_pickle(Path(shutil.copytree(tiny, tmp_path / "pickled")))
    with pytest.raises(EncoderError, match=f"only pickled weights .{INDEX}"):
        find_encoder(str(folder))
    texts = ["a good film", "the bad phone works"]
    given = run(texts, tmp_path / "given.h5", tiny, max_length=50)[0]
    split = run(texts, tmp_path / "split.h5", folder, max_length=50, allow_pickled_weights=True)[0]
    assert np.array_equal(given.features("cls")[:], split.features("cls")[:])
    before = find_encoder(str(folder), allow_pickled_weights=True).hashes()
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes() + b"\0")
    after = find_encoder(str(folder), allow_pickled_weights=True).hashes()
    assert {name for name in before if before[name] != after[name]} == {"weights_sha256"}
    (folder / SHARDS[0]).unlink()
    with pytest.raises(EncoderError, match=f"lacks the weights {SHARDS[0]}"):
        find_encoder(str(folder), allow_pickled_weights=True)


def test_a_model_of_sentencepiece_that_cannot_be_read_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "deberta", "DebertaV2Model")
    (folder / "spm.model").write_bytes(b"no model")
    monkeypatch.setattr(encoder_files, "_is_installed", lambda module: False)
    with pytest.raises(EncoderError, match=r"spm\.model is read by sentencepiece and protobuf; run `pip install"):
        _ = EncoderSession(settings(folder, max_length=50)).encoder


@pytest.mark.parametrize("asked", ["AutoConfig", "AutoModel", "AutoTokenizer"])
def test_code_of_its_own_is_refused_where_it_would_be_the_encoder(tiny: Path, tmp_path: Path, asked: str) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "own"))
    for name in ("config.json", "tokenizer_config.json"):
        given = json.loads((folder / name).read_bytes())
        for code in ({asked: "own.Class"}, ["own.Slow", None]):
            (folder / name).write_text(json.dumps(given | {"auto_map": code}))
            with pytest.raises(EncoderError, match=f"its {name} asks for code of its own .* take 'auto_map' out"):
                find_encoder(str(folder))
        (folder / name).write_text(json.dumps(given | {"auto_map": {"AutoModelForMaskedLM": "own.Class"}}))
        find_encoder(str(folder))


def test_adapters_beside_the_weights_are_not_applied_and_that_is_said(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "encoder"))
    for task in ("text_matching", "classification"):
        (folder / task).mkdir()
        (folder / task / "adapter_config.json").write_text("{}")
    cache, notes = run(["good film", "bad"], tmp_path / "c.h5", folder)
    assert [note for note in notes if "its adapters (classification, text_matching) are not applied" in note]
    plain, nothing = run(["good film", "bad"], tmp_path / "d.h5", tiny)
    assert nothing == []
    np.testing.assert_array_equal(cache.features(), plain.features())


def test_a_transformers_without_the_model_is_said_to_be_too_old(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for Nomic-BERT and GTE, whose own code is not needed where transformers has them."""
    monkeypatch.setattr(encoder_files, "_SAME_CODE", {"newer": {"NewerConfig"}})
    folder = Path(shutil.copytree(tiny, tmp_path / "encoder"))
    config = json.loads((folder / "config.json").read_bytes())
    code = {"AutoConfig": "code.NewerConfig", "AutoModel": "code.NewerModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "newer", "auto_map": code}))
    (folder / "code.py").write_text("raise SystemExit('the code of the folder was run')")
    with pytest.raises(EncoderError, match="has no such model of its own; install a newer one"):
        _ = EncoderSession(settings(folder)).encoder
