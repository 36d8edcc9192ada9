"""The program that headstart replaces, as a practitioner writes it with torch and transformers: a fair opponent.

BERT, dropout and a linear layer; a dataset of dicts; a `DataLoader`; autocast and a gradient scaler.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..devices import DTYPES
from ..encoders.batching import compose_batches
from ..encoders.files import EncoderFiles
from ..encoders.hf import load_tokenizer, quiet_transformers
from ..settings import Precision
from ..types import Features, Indices

DROPOUT = 0.3
HEAD_LEARNING_RATE, ENCODER_LEARNING_RATE = 1e-3, 2e-5
Item = dict[str, torch.Tensor]


class Padding(enum.StrEnum):
    """How far a text is padded."""

    FIXED = "fixed"  # to the greatest length
    BATCH = "batch"  # to the longest of its batch, which has as many padded tokens as a fixed batch, and more rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramSettings:
    """How the program runs."""

    batch_size: int = 8  # rows; with `Padding.BATCH`, the padded tokens of so many rows of the greatest length
    precision: Precision = Precision.FLOAT32
    frozen: bool = False  # the encoder is not trained
    workers: int = 0  # processes that tokenize; with 0, the program itself tokenizes
    pinned: bool = False  # batches are copied through page-locked memory
    padding: Padding = Padding.FIXED
    noisy: bool = True  # a frozen encoder has dropout, too: `model.train()` turns it on


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramEpoch:
    """One training epoch of the program."""

    start: float  # seconds in which workers start and end; a longer epoch takes no more of them
    seconds: float  # of the whole epoch
    loss: float  # mean training loss, in nats
    accuracy: float  # share of correct rows during the training


class SentimentClassifier(nn.Module):
    """Dropout and a linear layer on the last hidden state at [CLS]."""

    def __init__(self, files: EncoderFiles, classes: int) -> None:
        super().__init__()
        options = {"use_safetensors": not files.pickled, "trust_remote_code": False, "local_files_only": True}
        with quiet_transformers(), files.folder_with_metadata() as folder:
            self.bert: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **options)
        self.dropout: nn.Module = nn.Dropout(DROPOUT)
        self.fc = nn.Linear(self.bert.config.hidden_size, classes)

    def encode(self, batch: Item, *, frozen: bool) -> torch.Tensor:
        """Return the features of a batch, (rows, hidden); without a gradient where the encoder is frozen."""
        with torch.set_grad_enabled(not frozen):
            output = self.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        features: torch.Tensor = output.last_hidden_state[:, 0, :]
        return features


class Texts(Dataset[Item]):
    """Tokenizes a text when it is asked for: ``input_ids``, ``attention_mask`` and ``label``."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int], tokenize: Callable[[str], Any]) -> None:
        self._texts, self._labels, self._tokenize = texts, labels, tokenize

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> Item:
        encoding = self._tokenize(self._texts[row])
        item = {name: encoding[name].flatten() for name in ("input_ids", "attention_mask")}
        return {**item, "label": torch.tensor(self._labels[row])}


@dataclasses.dataclass(eq=False)
class Program:
    """The practitioner's program on some texts, each with a class number. The model is loaded at first use."""

    files: EncoderFiles
    texts: Sequence[str]
    labels: Sequence[int]
    _: dataclasses.KW_ONLY
    classes: int
    max_length: int  # tokens; longer texts are truncated
    device: torch.device

    def __post_init__(self) -> None:
        with quiet_transformers():
            self._tokenizer: Any = load_tokenizer(self.files)

    @functools.cached_property
    def model(self) -> SentimentClassifier:
        """The classifier, on the device."""
        return SentimentClassifier(self.files, self.classes).to(self.device)

    @functools.cached_property
    def optimizers(self) -> dict[bool, torch.optim.Optimizer]:
        """For a frozen encoder (True), of the head alone; otherwise (False), of all parameters."""
        head = torch.optim.AdamW(self.model.fc.parameters(), lr=HEAD_LEARNING_RATE)
        return {True: head, False: torch.optim.AdamW(self.model.parameters(), lr=ENCODER_LEARNING_RATE)}

    @functools.cached_property
    def lengths(self) -> dict[Padding, Indices]:
        """Tokens of each text, (rows,) int64: padded to the greatest length, and as short as they can be."""
        encodings = self._tokenizer(list(self.texts), truncation=True, max_length=self.max_length)
        own = np.array([len(ids) for ids in encodings["input_ids"]], np.int64)
        return {Padding.FIXED: np.full_like(own, self.max_length), Padding.BATCH: own}

    def batches(self, settings: ProgramSettings, rows: Indices) -> list[list[int]]:
        """Divide rows into batches, by length with the longest first; rows of one length stay in their order."""
        lengths, tokens = self.lengths[settings.padding][rows], settings.batch_size * self.max_length
        return [rows[batch].tolist() for batch in compose_batches(lengths, tokens, padded=True)]

    def padded_tokens(self, settings: ProgramSettings, batches: Sequence[list[int]]) -> int:
        """Count the tokens that the encoder reads, padding included."""
        return sum(len(batch) * int(self.lengths[settings.padding][batch].max()) for batch in batches)

    def loader(self, settings: ProgramSettings, batches: Sequence[list[int]]) -> DataLoader[Item]:
        """Return a loader of these batches of rows."""
        options: dict[str, Any] = {"num_workers": settings.workers, "pin_memory": settings.pinned}
        if settings.padding is Padding.BATCH:
            options["collate_fn"] = functools.partial(pad_batch, padding=self._tokenizer.pad_token_id or 0)
        padding = "max_length" if settings.padding is Padding.FIXED else False
        cut = {"truncation": True, "max_length": self.max_length}
        tokenize = functools.partial(self._tokenizer, padding=padding, return_tensors="pt", **cut)
        return DataLoader(Texts(self.texts, self.labels, tokenize), batch_sampler=batches, **options)

    def train(
        self, settings: ProgramSettings, batches: Sequence[list[int]], on_batch: Callable[[], None] = lambda: None
    ) -> ProgramEpoch:
        """Train for one epoch over these batches, and call ``on_batch`` after each."""
        model, device, optimizer = self.model, self.device, self.optimizers[settings.frozen]
        model.bert.requires_grad_(not settings.frozen)
        mixed = settings.precision is not Precision.FLOAT32
        scaler = torch.amp.GradScaler(device.type, enabled=mixed and device.type == "cuda")
        model.train()
        if not settings.noisy:
            model.bert.eval()
        rows = right = 0
        loss_sum = start = 0.0
        began = last = time.perf_counter()
        for batch in self.loader(settings, batches):
            if not rows and settings.workers:
                start = time.perf_counter() - began
            moved = {name: tensor.to(device, non_blocking=settings.pinned) for name, tensor in batch.items()}
            with torch.autocast(device.type, dtype=DTYPES[settings.precision], enabled=mixed):
                logits = model.fc(model.dropout(model.encode(moved, frozen=settings.frozen)))
                loss = nn.functional.cross_entropy(logits, moved["label"])
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            loss_sum += len(logits) * loss.item()  # a practitioner shows the loss; this also waits for the device
            right += int((logits.argmax(dim=1) == moved["label"]).sum())
            rows += len(logits)
            on_batch()
            last = time.perf_counter()
        ended = time.perf_counter()
        start += ended - last
        return ProgramEpoch(start=start, seconds=ended - began, loss=loss_sum / rows, accuracy=right / rows)

    def encode(self, rows: Indices) -> Features:
        """Return the features of some rows from the encoder in ``eval()``: (rows, hidden) float32."""
        self.model.eval()
        loader = self.loader(ProgramSettings(), [rows[at : at + 16].tolist() for at in range(0, len(rows), 16)])
        moved = ({name: tensor.to(self.device) for name, tensor in batch.items()} for batch in loader)
        return torch.cat([self.model.encode(batch, frozen=True) for batch in moved]).cpu().numpy()


def pad_batch(items: list[Item], padding: int) -> Item:
    """Stack items, padded to the longest; ``padding`` is the token to pad with."""
    values = {"input_ids": padding, "attention_mask": 0}
    batch = {
        name: nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)
        for name, value in values.items()
    }
    return {**batch, "label": torch.stack([item["label"] for item in items])}
