"""How fast headstart gives an encoder's own vector: beside sentence-transformers' `encode`, one architecture at a time.

The encoders have the real shapes, and random weights where no folder is given: how long one takes does not depend on
its weights. All have MiniLM's tokenizer, so that all encode the same tokens of the same real texts. Both contenders are
processes of their own, and encode the same piece of texts in each round, in alternating order; the ratio is taken
within a round. The largest difference between the two vectors stands beside their speeds.

    python bench/architectures.py --shapes bert-base mpnet-base
    python bench/architectures.py --folder .data/all-mpnet-base-v2
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `encoder_speed`
    os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import tokenizers
from contenders import CORES, Alone
from facts import LIBRARIES, cpu_name, version_of
from samples import draw_pieces, read_texts
from speed_report import WRONG, spread

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data"
LONGEST = 256  # tokens of a text
LONG = 112  # tokens that the short texts are joined to, at least; about 128 on average
PIECES = {"short": 2, "long": 1}  # of each kind of texts; of two, one is of its shorter half, one of its longer
TINY = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    **{"intermediate_size": 64, "query_pre_attn_scalar": 16, "embedding_size": 16},
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A real encoder's sizes.

    Attributes:
        config: Fields of config.json where transformers' defaults are other ones; the vocabulary is MiniLM's.
        pooling: A mode of sentence-transformers.
        layers: How many it really has, where fewer are measured, which ``config`` says.
        dense: Numbers after each dense layer that follows the pooling.
    """

    config: Mapping[str, Any]
    pooling: str = "mean"
    layers: int | None = None
    dense: Sequence[int] = ()

    @property
    def mode(self) -> str:
        """How it is pooled here. A last layer for few tokens alone is a larger part of fewer layers: mean needs all."""
        return "mean" if self.layers else self.pooling


DECODER = {"rms_norm_eps": 1e-6, "max_position_embeddings": 4096}
SHAPES = {
    "bert-base": Shape({"model_type": "bert"}),
    "mpnet-base": Shape({"model_type": "mpnet", "max_position_embeddings": 514}),
    "modernbert-base": Shape({"model_type": "modernbert"}, "cls"),
    "albert-base": Shape(
        {
            **{"model_type": "albert", "embedding_size": 128, "hidden_size": 768, "num_hidden_layers": 12},
            **{"num_attention_heads": 12, "intermediate_size": 3072},
        }
    ),
    "nomic": Shape({"model_type": "nomic_bert"}),
    "gte-base": Shape({"model_type": "gte"}, "cls"),
    "jina-v3": Shape({"model_type": "jina_embeddings_v3", "num_hidden_layers": 6}, layers=24),
    "deberta-v3-base": Shape(
        {
            **{"model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
            **{"intermediate_size": 3072, "relative_attention": True, "position_buckets": 256, "type_vocab_size": 0},
            **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"]},
            **{"max_relative_positions": -1, "position_biased_input": False, "layer_norm_eps": 1e-7},
        }
    ),
    "qwen3-0.6b": Shape(
        {
            **{"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 16},
            **{"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, **DECODER},
        },
        "lasttoken",
        layers=28,
    ),
    "llama-1b": Shape(
        {
            **{"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, **DECODER},
        },
        "lasttoken",
        layers=16,
    ),
    "mistral-7b": Shape(
        {
            **{"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336, **DECODER},
        },
        "lasttoken",
        layers=32,
    ),
    "gemma3-300m": Shape(
        {
            **{"model_type": "gemma3_text", "hidden_size": 768, "num_hidden_layers": 24, "num_attention_heads": 3},
            **{"num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "intermediate_size": 1152},
            **{"use_bidirectional_attention": True, "sliding_window": 512, **DECODER},
        },
        dense=(3072, 768),
    ),
}


def save(shape: Shape, folder: Path, *, tiny: bool = False) -> Path:
    """Save an encoder of the shape with seeded random weights, as sentence-transformers lays it out."""
    import torch
    import transformers
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(DATA / "minilm" / file, folder)
    ids = {"pad_token_id": 0, "cls_token_id": 101, "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102}
    changed = {**shape.config, **({name: TINY[name] for name in TINY if name in shape.config} if tiny else {})}
    if tiny:  # sizes that transformers' defaults would give
        changed |= {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")}
        changed |= {"num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(**{**ids, "vocab_size": vocabulary().get_vocab_size(), **changed})
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    width = int(config.hidden_size)
    kinds = ["Transformer", "Pooling", *["Dense" for _ in shape.dense], "Normalize"]
    paths = [f"{number}_{kind}" if number else "" for number, kind in enumerate(kinds)]
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    documents: dict[str, Any] = {"modules.json": entries, "sentence_bert_config.json": {"max_seq_length": LONGEST}}
    documents["1_Pooling/config.json"] = {"word_embedding_dimension": width, "pooling_mode": shape.mode}
    inputs = width
    for path, numbers in zip(paths[2:], shape.dense, strict=False):
        outputs = numbers * width // 768
        fields = {"in_features": inputs, "out_features": outputs, "bias": False}
        documents[f"{path}/config.json"] = {**fields, "activation_function": "torch.nn.modules.linear.Identity"}
        (folder / path).mkdir()
        save_file(
            {"linear.weight": torch.randn(outputs, inputs) / math.sqrt(inputs)}, folder / path / "model.safetensors"
        )
        inputs = outputs
    for name, document in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder


def vocabulary() -> tokenizers.Tokenizer:
    """MiniLM's tokenizer, which cuts texts and does not pad."""
    tokenizer = tokenizers.Tokenizer.from_file(str(DATA / "minilm" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


@functools.cache
def read(kind: str) -> tuple[list[str], list[int]]:
    """VADER's texts, short as they are or joined to long ones, and the number of tokens of each."""
    texts, tokenizer = list(read_texts(DATA / "vader.csv")), vocabulary()
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    if kind == "short":
        return texts, lengths
    joined, left = [""], 0
    for text, length in zip(texts, lengths, strict=True):
        if left >= LONG:
            joined, left = [*joined, ""], 0
        joined[-1], left = f"{joined[-1]} {text}".strip(), left + length - 2
    joined.pop()  # which may be short
    return joined, [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(joined)]


def draw(kind: str, tokens: int) -> list[tuple[list[str], int]]:
    """Pieces of the texts, from short ones to long, and the number of tokens of each piece."""
    texts, lengths = read(kind)
    pieces = draw_pieces(lengths, tokens=tokens, pieces=PIECES[kind], seed=0)
    return [([texts[row] for row in piece], sum(lengths[row] for row in piece)) for piece in pieces]


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Let processes that begin meanwhile have so many cores."""
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("bench/architectures.py: --cores needs Linux")
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def measure(
    name: str, folder: Path, kinds: Sequence[str], *, tokens: int, cores: int, rounds: int, dtype: str
) -> Iterator[str]:
    """Lines of the table: one for each kind of texts."""
    keys = [f"own-headstart-{dtype}", f"own-st-{dtype}"]
    with on_cores(cores):
        ours, theirs = field = [Alone(key, folder, folder) for key in keys]
    for kind in kinds:
        drawn = draw(kind, tokens * cores)
        difference, seconds = 0.0, np.empty((2, rounds))
        for texts, _ in drawn:  # also the round that is not timed
            vectors = [contender.encode(texts) for contender in field]
            found = np.abs(vectors[0] - vectors[1])
            difference = max(difference, float(found.max()) if np.isfinite(found).all() else float("inf"))
        for number in range(rounds):
            texts = drawn[number % len(drawn)][0]
            for place in (0, 1) if number // len(drawn) % 2 else (1, 0):
                seconds[place, number] = field[place].seconds(texts)
        counts = np.array([drawn[number % len(drawn)][1] for number in range(rounds)])
        speeds = np.median(counts / seconds, axis=1)
        wrong = " **WRONG**" if dtype == "float32" and not difference <= WRONG else ""
        yield (
            f"| {name} | {ours.way} | {kind} | {cores} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | "
            f"{spread(seconds[1] / seconds[0])} | {difference:.1e}{wrong} |"
        )
        print(f"{name}, {kind}, {cores} cores: {rounds} rounds", file=sys.stderr, flush=True)
    for contender in (ours, theirs):
        contender.end()


def main() -> None:
    arguments = parse()
    names = arguments.shapes or ([] if arguments.folder else list(SHAPES))
    versions = ", ".join(f"{name} {found}" for name in LIBRARIES if (found := version_of(name)))
    print(f"{cpu_name()}; OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}; {versions}")
    print("The shapes have random weights.")
    for kind in arguments.texts:
        drawn = draw(kind, arguments.tokens)
        told = ", ".join(f"{len(texts):,} texts of {tokens / len(texts):.0f} tokens" for texts, tokens in drawn)
        print(f"{kind} texts: {told} on average, for each core; {arguments.rounds} rounds; {arguments.precision}")
    head = "encoder | path | texts | cores | headstart, tokens/s | sentence-transformers, tokens/s | times as fast"
    print(f"\n| {head} | largest difference |\n|---|---|---|---|---|---|---|---|", flush=True)

    def each(name: str, folder: Path) -> None:
        for cores in arguments.cores:
            chosen = {"tokens": arguments.tokens, "rounds": arguments.rounds, "dtype": arguments.precision}
            for line in measure(name, folder, arguments.texts, cores=cores, **chosen):
                print(line, flush=True)

    if arguments.folder:
        each(f"{arguments.folder.name}, real weights", arguments.folder.resolve())
    for name in names:
        shape = SHAPES[name]
        told = f"{name}, {shape.config['num_hidden_layers']} of {shape.layers} layers, mean" if shape.layers else name
        with tempfile.TemporaryDirectory() as scratch:
            each(told, save(shape, Path(scratch) / "encoder", tiny=arguments.tiny))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--folder", type=Path, help="a real encoder, as sentence-transformers lays it out")
    parser.add_argument("--cores", nargs="+", type=int, default=[n for n in (1, 2) if n <= CORES], metavar="N")
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds for each kind of texts")
    parser.add_argument("--texts", nargs="+", choices=PIECES, default=list(PIECES), metavar="KIND")
    parser.add_argument("--tokens", type=int, default=1200, help="most tokens of a piece for each core")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tiny", action="store_true", help="two tiny layers: a dry run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
