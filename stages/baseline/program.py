"""The program that headstart stands in for, as a practitioner writes it with torch and transformers.

A BERT, dropout and a linear layer; a dataset of dicts; a `DataLoader`; autocast and a gradient scaler. It is here to be
measured against, as a fair opponent: `speedup` runs it, and nothing else imports it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
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
from ..types import Indices
from .rungs import Padding, RungSettings

DROPOUT = 0.3
LEARNING_RATES = {True: 1e-3, False: 2e-5}
"""AdamW's, of a head alone and of a whole encoder."""
Item = dict[str, torch.Tensor]


class SentimentClassifier(nn.Module):
    """Dropout and a linear layer on the last hidden state at [CLS]."""

    def __init__(self, files: EncoderFiles, classes: int) -> None:
        super().__init__()
        with quiet_transformers():
            self.bert: Any = transformers.AutoModel.from_pretrained(
                files.folder,
                dtype=torch.float32,
                use_safetensors=not files.pickled,
                trust_remote_code=False,
                local_files_only=True,
            )
        self.dropout = nn.Dropout(DROPOUT)
        self.fc = nn.Linear(self.bert.config.hidden_size, classes)

    def encode(self, batch: Item, *, frozen: bool) -> torch.Tensor:
        """The features of a batch: (rows, hidden)."""
        with torch.no_grad() if frozen else contextlib.nullcontext():
            state: torch.Tensor = self.bert(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
        return state[:, 0, :]


class Texts(Dataset[Item]):
    """Texts that are tokenized when they are asked for: ``input_ids``, ``attention_mask`` and ``label`` of each."""

    def __init__(
        self, texts: Sequence[str], labels: Sequence[int], tokenizer: Any, *, max_length: int, padding: Padding
    ) -> None:
        self._texts, self._labels, self._tokenizer = texts, labels, tokenizer
        self._options = {"truncation": True, "max_length": max_length, "return_tensors": "pt"}
        self._options["padding"] = "max_length" if padding is Padding.FIXED else False

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> Item:
        encoding = self._tokenizer(self._texts[row], **self._options)
        return {
            "input_ids": encoding["input_ids"].flatten(),
            "attention_mask": encoding["attention_mask"].flatten(),
            "label": torch.tensor(self._labels[row]),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramEpoch:
    """One training epoch of the program.

    Attributes:
        start: Seconds that workers took to begin and to end: what an epoch costs whatever its length.
        seconds: All of it.
        loss: Mean training loss, in nats.
        accuracy: Share of the rows that were right while it trained.
    """

    start: float
    seconds: float
    loss: float
    accuracy: float


class Program:
    """The practitioner's program: a tokenizer, a classifier that is loaded when it is needed, texts and their labels.

    Attributes:
        rows: How many texts there are.
    """

    def __init__(
        self,
        files: EncoderFiles,
        texts: Sequence[str],
        labels: Sequence[int],
        *,
        classes: int,
        max_length: int,
        device: torch.device,
    ) -> None:
        with quiet_transformers():
            self._tokenizer = load_tokenizer(files)
        self.rows = len(texts)
        self._files, self._classes = files, classes
        self._texts, self._labels, self._max_length, self._device = texts, labels, max_length, device

    @functools.cached_property
    def model(self) -> SentimentClassifier:
        """The classifier."""
        return SentimentClassifier(self._files, self._classes).to(self._device)

    @functools.cached_property
    def _optimizers(self) -> dict[bool, torch.optim.Optimizer]:
        """Of a frozen encoder's head, and of all that is trained otherwise."""
        trained = {True: self.model.fc.parameters(), False: self.model.parameters()}
        return {frozen: torch.optim.AdamW(trained[frozen], lr=rate) for frozen, rate in LEARNING_RATES.items()}

    @functools.cached_property
    def _lengths(self) -> Indices:
        """Tokens of each text, special ones included: (rows,) int64."""
        found = self._tokenizer(list(self._texts), truncation=True, max_length=self._max_length)
        return np.array([len(ids) for ids in found["input_ids"]], np.int64)

    def padded_tokens(self, settings: RungSettings, batches: Sequence[list[int]]) -> int:
        """What goes through the encoder with these batches, padding included."""
        if settings.padding is Padding.FIXED:
            return self._max_length * sum(map(len, batches))
        return sum(len(batch) * int(self._lengths[batch].max()) for batch in batches)

    def loader(self, settings: RungSettings, batches: Sequence[list[int]]) -> DataLoader[Item]:
        """A loader of these batches of rows."""
        dataset = Texts(
            self._texts, self._labels, self._tokenizer, max_length=self._max_length, padding=settings.padding
        )
        collate = None
        if settings.padding is Padding.BATCH:
            collate = functools.partial(pad_batch, padding=self._tokenizer.pad_token_id or 0)
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=settings.workers,
            pin_memory=settings.pinned,
            collate_fn=collate,
        )

    def batches(self, settings: RungSettings, rows: Indices) -> list[list[int]]:
        """Rows in batches: as they come, or those of similar length together, the longest first."""
        if settings.padding is Padding.FIXED:
            return [rows[at : at + settings.batch_size].tolist() for at in range(0, len(rows), settings.batch_size)]
        found = compose_batches(self._lengths[rows], settings.batch_size * self._max_length, padded=True)
        return [rows[batch].tolist() for batch in found]

    def train(
        self, settings: RungSettings, batches: Sequence[list[int]], on_batch: Callable[[], None] = lambda: None
    ) -> ProgramEpoch:
        """Train for one epoch over these batches, telling of each."""
        model, device = self.model, self._device
        model.bert.requires_grad_(not settings.frozen)
        optimizer = self._optimizers[settings.frozen]
        mixed = settings.precision is not Precision.FLOAT32
        scaler = torch.amp.GradScaler(device.type, enabled=mixed and device.type == "cuda")
        model.train()
        if not settings.noisy:
            model.bert.eval()
        rows = right = 0
        loss_sum = start = 0.0
        with tokenizers_alone():
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
                loss_sum += len(logits) * loss.item()  # for the progress that it shows; it also waits for the device
                right += int((logits.argmax(dim=1) == moved["label"]).sum())
                rows += len(logits)
                on_batch()
                last = time.perf_counter()
            ended = time.perf_counter()
        return ProgramEpoch(
            start=start + ended - last, seconds=ended - began, loss=loss_sum / rows, accuracy=right / rows
        )


def pad_batch(items: list[Item], padding: int) -> Item:
    """Pad to the longest of a batch; ``padding`` is the token to pad with."""
    values = {"input_ids": padding, "attention_mask": 0}
    batch = {
        name: nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)
        for name, value in values.items()
    }
    return {**batch, "label": torch.stack([item["label"] for item in items])}


@contextlib.contextmanager
def tokenizers_alone() -> Iterator[None]:
    """Keep the tokenizer off threads: it is called text by text, and a fork would leave its threads behind."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
