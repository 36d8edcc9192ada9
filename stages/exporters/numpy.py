"""The format ``numpy``: the head's arrays, and a file of numpy that makes labels of features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..settings import Task
from .exporter import Exporter, load_code
from .source import Answers, Texts

CODE = "head.py"
_BEGIN = '''"""Labels of features, by numpy alone: python head.py features.npy"""

import json
import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).parent
with np.load(FOLDER / "head.npz") as file:
    ARRAYS = dict(file)
HEAD = json.loads((FOLDER / "head.json").read_text(encoding="utf-8"))


def logits(features):
    """(rows, width) features to (rows, outputs)."""
    values = np.asarray(features, np.float32)
'''
_DIMS = "    values = values[:, : HEAD['dims']]\n"
_NORMALIZE = "    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)\n"
_HIDDEN = '    values = np.maximum(values @ ARRAYS["hidden_weight"].T + ARRAYS["hidden_bias"], 0)\n'
_LAST = '    return values @ ARRAYS["weight"].T + ARRAYS["bias"]\n'
_PROBABILITIES = {
    Task.CLASSES: '''

def probabilities(features):
    """(rows, width) features to (rows, classes)."""
    values = logits(features)
    values = np.exp(values - values.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)
''',
    Task.MULTI_LABEL: '''

def probabilities(features):
    """(rows, width) features to (rows, labels), each for itself."""
    return 1 / (1 + np.exp(-logits(features).astype(np.float64)))
''',
    Task.ORDINAL: '''

def probabilities(features):
    """(rows, width) features to (rows, classes); a logit is that of being above each class but the last."""
    above = 1 / (1 + np.exp(-logits(features).astype(np.float64)))
    above = np.pad(above, [(0, 0), (1, 1)], constant_values=[(0, 0), (1, 0)])
    return np.maximum(above[:, :-1] - above[:, 1:], 0)
''',
    Task.REGRESSION: "",
}
_CHOSEN = '''

def labels(features):
    """(rows, width) features to names, the most probable class of each row."""
    return [HEAD["labels"][number] for number in probabilities(features).argmax(axis=1)]
'''
_LABELS = {
    Task.CLASSES: _CHOSEN,
    Task.ORDINAL: _CHOSEN,
    Task.MULTI_LABEL: '''

def labels(features):
    """(rows, width) features to lists of names: the labels whose probability reaches their threshold."""
    said = probabilities(features) >= np.array(HEAD["thresholds"])
    return [[name for name, one in zip(HEAD["labels"], row) if one] for row in said]
''',
    Task.REGRESSION: '''

def labels(features):
    """(rows, width) features to numbers."""
    return logits(features)[:, 0].tolist()
''',
}
_BY_THRESHOLDS = '''

def labels(features):
    """(rows, width) features to names: the class whose probability is largest in proportion to its threshold."""
    return [HEAD["labels"][n] for n in (probabilities(features) / np.array(HEAD["thresholds"])).argmax(axis=1)]
'''
_END = """

if __name__ == "__main__":
    print(*labels(np.load(sys.argv[1])), sep="\\n")
"""


class NumpyExporter(Exporter):
    """See the module. It reads features, so it carries every head, and texts are left to headstart."""

    library = "numpy"

    def problems(self) -> list[str]:
        return []

    def write(self, folder: Path) -> None:
        head, names = self.source.head, list(self.source.head.label_names)
        *hidden, (weight, bias) = self.source.layers()
        arrays = {"weight": weight, "bias": bias}
        if hidden:
            arrays |= {"hidden_weight": hidden[0][0], "hidden_bias": hidden[0][1]}
        np.savez(folder / "head.npz", **arrays)  # type: ignore[arg-type]
        thresholds = list(head.thresholds or [0.5] * len(names))
        fields = {"labels": names, "thresholds": thresholds, "dims": None if head.dims is None else head.dims.dims}
        (folder / "head.json").write_text(json.dumps(fields, ensure_ascii=False) + "\n", encoding="utf-8")
        by_thresholds = head.thresholds is not None and head.task in (Task.CLASSES, Task.ORDINAL)
        parts = [
            _BEGIN,
            _DIMS * (head.dims is not None),
            _NORMALIZE * (head.normalize or (head.dims is not None and head.dims.normalized)),
            _HIDDEN * bool(hidden),
            _LAST,
            _PROBABILITIES[head.task],
            _BY_THRESHOLDS if by_thresholds else _LABELS[head.task],
            _END,
        ]
        (folder / CODE).write_text("".join(parts), encoding="utf-8")

    def answers(self, folder: Path, texts: Texts) -> Answers:
        module, features = load_code(folder / CODE), self.source.features(texts)
        return Answers(logits=module.logits(features).astype(np.float32), labels=module.labels(features))

    def usage(self) -> str:
        feature, identity = self.source.given.features[0].name, self.source.head.identity
        texts = "lists of texts, one of each pair" if identity.pairs else "a list of texts"
        return "\n".join(
            [
                "import head  # head.py of this folder",
                "",
                f"# features: (rows, {self.source.head.width}), the encoder's feature {feature!r} of {texts}, such as",
                f"# headstart.open_cache('cache.h5').features({feature!r}), of a cache that headstart extract wrote",
                "labels = head.labels(features)",
            ]
        )
