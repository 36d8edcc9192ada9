"""The format ``torch``: ``best_bert_sentiment_model.pth``, the weights of the usual program of a frozen BERT.

That program's class has the encoder as ``bert``, a dropout, and the linear layer ``fc`` on the first token's state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..settings import Task
from .exporter import Exporter, load_code, of_decisions, of_first_token, of_pairs, of_prefix
from .source import Answers, Texts, batches

FILE, CODE = "best_bert_sentiment_model.pth", "model.py"
_CODE = '''"""The program's class, and its weights."""

import pathlib

import torch
import transformers

FOLDER = pathlib.Path(__file__).parent


class SentimentClassifier(torch.nn.Module):
    def __init__(self, config, classes):
        super().__init__()
        self.bert = transformers.AutoModel.from_config(config)
        self.dropout = torch.nn.Dropout(0.3)
        self.fc = torch.nn.Linear(config.hidden_size, classes)

    def forward(self, input_ids, attention_mask):
        output = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return self.fc(self.dropout(output.last_hidden_state[:, 0, :]))


def load():
    """Return the model, its tokenizer, and the names of the classes."""
    config = transformers.AutoConfig.from_pretrained(FOLDER)
    model = SentimentClassifier(config, len(config.id2label))
    model.load_state_dict(torch.load(FOLDER / "{FILE}", weights_only=True))
    return model.eval(), transformers.AutoTokenizer.from_pretrained(FOLDER), config.id2label
'''.replace("{FILE}", FILE)


class TorchExporter(Exporter):
    """See the module."""

    library = "pytorch"

    def problems(self) -> list[str]:
        source = self.source
        problems = [*super().problems(), *of_prefix(source), *of_pairs(source), *of_decisions(source)]
        if source.head.task is not Task.CLASSES:
            problems.append("the program predicts classes")
        problems += of_first_token(source)
        if not problems and source.pooled[0].layer is not None:
            problems.append("its feature is of a layer inside")
        if not problems and source.poolings[0] != "cls":
            problems.append("its feature is the encoder's pooler")
        if source.head.hidden_weight is not None:
            problems.append("it has a hidden layer")
        return problems

    def write(self, folder: Path) -> None:
        source = self.source
        config = source.model.config
        config.update(source.label_config())
        ((weight, bias),) = [(step.weight, step.bias) for step in source.steps()]  # type: ignore[union-attr]
        weights = {f"bert.{name}": tensor for name, tensor in source.model.state_dict().items()}
        torch.save({**weights, "fc.weight": weight, "fc.bias": bias}, folder / FILE)
        config.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)
        (folder / CODE).write_text(_CODE, encoding="utf-8")

    def answers(self, folder: Path, texts: Texts) -> Answers:
        from ..encoders.hf import quiet_transformers

        with quiet_transformers():
            model, tokenizer, names = load_code(folder / CODE).load()
        found = []
        for batch in batches(texts):
            inputs = tokenizer(batch.texts, truncation=True, padding=True, return_tensors="pt")
            with torch.inference_mode():
                found.append(model(inputs["input_ids"], inputs["attention_mask"]).numpy())
        logits = np.concatenate(found)
        return Answers(logits=logits, labels=[names[number] for number in logits.argmax(axis=1).tolist()])

    def usage(self) -> str:
        return "\n".join(
            [
                "import model, torch  # model.py of this folder",
                "",
                "classifier, tokenizer, names = model.load()",
                'rows = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")',
                "with torch.inference_mode():",
                '    logits = classifier(rows["input_ids"], rows["attention_mask"])',
                "labels = [names[number] for number in logits.argmax(dim=1).tolist()]",
            ]
        )
