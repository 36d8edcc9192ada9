"""What is exported: a head, and the encoder that its features come from, in parts that every format is written of."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from ...cache.documents import read_json_file
from ..encoders.encoder import Encoder, EncoderSettings, encode_sequences, leave_out_prompt
from ..encoders.files import CONFIG, EncoderFiles
from ..encoders.modules import module_weights
from ..encoders.pooling import Feature, Pooling
from ..encoders.recipe import Activation, Dense, LayerNorm, Normalize, Truncate
from ..encoders.tokenizer import set_up
from ..heads.head import Head, outputs_of
from ..settings import Task

if TYPE_CHECKING:
    import transformers

Logits = npt.NDArray[np.float32]
"""(rows, biases of the head) float32, divided by the head's temperature."""
Labels = list[Any]
"""For each row: a name, a list of names, or a number."""
_FINAL_STATES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "albert")
"""Kinds of model in which no norm follows the last layer: with fewer layers, the last one's states are those inside."""

_BATCH, _BATCH_CHARACTERS = 16, 8192


@dataclasses.dataclass(frozen=True)
class Linear:
    """A dense layer and the function after it; see `steps`."""

    weight: torch.Tensor  # (outputs, inputs) float32
    bias: torch.Tensor | None  # (outputs,) float32
    activation: Activation = Activation.IDENTITY


@dataclasses.dataclass(frozen=True)
class Norm:
    """A layer norm."""

    weight: torch.Tensor
    bias: torch.Tensor


Step = Linear | Norm | Normalize | Truncate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts, or pairs of texts."""

    texts: list[str]
    pairs: list[str] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What an export, or headstart, says of some texts."""

    logits: Logits
    labels: Labels


@dataclasses.dataclass(frozen=True)
class Source:
    """A run to export. ``record`` is its run.json; ``settings`` are those of its one feature, in float32."""

    head: Head
    record: Mapping[str, Any]
    files: EncoderFiles
    given: EncoderSettings

    @functools.cached_property
    def kind(self) -> str:
        """The kind of the model, such as ``bert``."""
        return str(read_json_file(self.files.model / CONFIG)["model_type"])

    @functools.cached_property
    def settings(self) -> EncoderSettings:
        """The settings, with the tokens of a prompt that are left out."""
        return leave_out_prompt(self.given, self.tokenizer.backend_tokenizer, name=self.files.name)

    @property
    def pooled(self) -> tuple[Feature, ...]:
        """What is pooled of the states of the encoder; `steps` follow."""
        return self.given.pooled

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        return tuple(feature.pooling for feature in self.pooled)

    @property
    def cuts_layers(self) -> bool:
        """Whether the states of the feature's layer are the last ones of a model with fewer layers, or need be none."""
        return self.pooled[0].layer is None or self.kind in _FINAL_STATES

    @functools.cached_property
    def tokenizer(self) -> transformers.PreTrainedTokenizerFast:
        """The encoder's tokenizer, set up to cut and to lower-case as `extract` does, and to pad on the right."""
        import transformers

        from ..encoders.hf import load_tokenizer

        given, settings = load_tokenizer(self.files), self.given
        set_up(
            given.backend_tokenizer,
            max_length=settings.max_length,
            direction=settings.truncation_side,
            lower_case=settings.lower_case,
        )
        special = {"pad_token": given.convert_ids_to_tokens(0), **given.special_tokens_map}
        segments = self.has_segments(given)
        return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=given.backend_tokenizer,
            model_max_length=settings.max_length,
            truncation_side=settings.truncation_side,
            padding_side="right",
            model_input_names=["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
            **special,
        )

    def has_segments(self, tokenizer: Any = None) -> bool:
        """Whether the encoder tells the two texts of a pair apart."""
        names = (tokenizer or self.tokenizer).model_input_names
        return (
            "token_type_ids" in names and int(read_json_file(self.files.model / CONFIG).get("type_vocab_size", 2)) > 1
        )

    @functools.cached_property
    def model(self) -> Any:
        """The encoder's model, as transformers loads it, in float32."""
        from ..encoders.hf import load_model, quiet_transformers

        with quiet_transformers():
            model = load_model(self.files, self.pooled)
        model.config._name_or_path = ""  # a path of this machine
        return model

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder as headstart runs it, in float32: what an export is compared with."""
        from ..encoders.hf import load_encoder

        return load_encoder(self.files, self.given)

    def steps(self) -> tuple[Step, ...]:
        """What is done with the pooled states, joined: the encoder's own modules, then the head.

        The last step gives `Logits`: the temperature is a part of its weights.
        """
        head, dims = self.head, self.head.dims
        made: list[Step] = []
        for module in () if self.given.recipe is None else self.given.recipe.modules:
            match module:
                case Dense():
                    made.append(Linear(*module_weights(self.files, module), module.activation))
                case LayerNorm():
                    weight, bias = module_weights(self.files, module)
                    assert bias is not None
                    made.append(Norm(weight, bias))
                case _:
                    made.append(module)
        layers = self.layers()
        normalizes = head.normalize or (dims is not None and dims.normalized)
        if dims is not None and normalizes:
            made.append(Truncate(width=dims.dims))
        elif dims is not None:  # the weights of the other numbers are 0
            layers[0] = np.pad(layers[0][0], [(0, 0), (0, dims.of - dims.dims)]), layers[0][1]
        if normalizes:
            made.append(Normalize(width=head.width if dims is None else dims.dims))
        functions = [Activation.RELU, Activation.IDENTITY][-len(layers) :]
        for layer, function in zip(layers, functions, strict=True):
            made.append(Linear(torch.from_numpy(layer[0]), torch.from_numpy(layer[1]), function))
        return tuple(made)

    def layers(self) -> list[tuple[Logits, Logits]]:
        """Return the weight and bias of each layer of the head, float32; the last gives `Logits`."""
        head = self.head
        layers: list[tuple[Logits, Logits]] = []
        if head.hidden_weight is not None and head.hidden_bias is not None:
            layers.append((head.hidden_weight, head.hidden_bias))
        weight = np.repeat(head.weight, len(head.bias) // len(head.weight), axis=0)  # classes with an order share one
        scale = np.float64(head.temperature)
        layers.append(((weight / scale).astype(np.float32), (head.bias / scale).astype(np.float32)))
        return layers

    def tokenize(self, texts: Texts) -> list[Any]:
        """Return the token sequences of texts; some may be empty."""
        return self.encoder.tokenize(texts.texts, texts.pairs)[0]

    def features(self, texts: Texts) -> npt.NDArray[np.float32]:
        """Return the features of texts that have tokens: (rows, width) float32."""
        (features,) = encode_sequences(self.encoder, self.tokenize(texts)).values()
        return features

    def answers(self, texts: Texts) -> Answers:
        """Return what headstart says of texts that have tokens."""
        logits = (self.head.logits(self.features(texts)) / np.float64(self.head.temperature)).astype(np.float32)
        outputs = outputs_of(self.head.task, logits.astype(np.float64)).astype(np.float32)
        return Answers(logits=logits, labels=self.names(self.head.predictions(outputs)))

    def names(self, predictions: npt.NDArray[Any]) -> Labels:
        """Return what `Head.predictions` says, with names."""
        names = self.head.label_names
        if self.head.task is Task.REGRESSION:
            return [float(number) for number in predictions]
        if self.head.task is Task.MULTI_LABEL:
            return [[name for name, said in zip(names, row, strict=True) if said] for row in predictions]
        return [names[number] for number in predictions]

    def label_config(self) -> dict[str, Any]:
        """Return what config.json says of the labels, as transformers reads it."""
        names = self.head.label_names or ("value",)
        problems = {
            Task.CLASSES: "single_label_classification",
            Task.MULTI_LABEL: "multi_label_classification",
            Task.REGRESSION: "regression",
        }
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": problems.get(self.head.task),
        }

    def least_probabilities(self) -> dict[str, float]:
        """Return the probability of each label from which it is predicted, where a row may have several."""
        least = self.head.thresholds or [0.5] * len(self.head.label_names)
        return dict(zip(self.head.label_names, least, strict=True))

    def save_encoder(self, folder: Path, **config: Any) -> None:
        """Save the encoder's model with its tokenizer, as transformers does; with these changes of its config.json."""
        from ..encoders.hf import quiet_transformers

        model, layer = self.model, self.pooled[0].layer
        if layer is not None:
            import transformers

            shorter = type(model.config).from_dict({**model.config.to_dict(), "num_hidden_layers": layer})
            weights = model.state_dict()
            model = transformers.AutoModel.from_config(shorter)  # type: ignore[no-untyped-call]
            model.load_state_dict({name: weights[name] for name in model.state_dict()})
        model.config.update(config)
        with quiet_transformers():
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor | None]) -> None:
    """Write a file of tensors; those that are None are left out."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
    path.write_bytes(safetensors.numpy.save(arrays, {"format": "pt"}))


def batches(texts: Texts) -> list[Texts]:
    """Cut texts into batches, in their order. Padded to their longest text, they have a bounded number of characters:
    attention over a text of thousands of tokens takes gigabytes where many are padded to it."""
    lengths = [len(text) for text in texts.texts]
    if texts.pairs is not None:
        lengths = [length + len(pair) for length, pair in zip(lengths, texts.pairs, strict=True)]
    bounds, longest = [0], 0
    for number, length in enumerate(lengths):
        longest, count = max(longest, length), number - bounds[-1]
        if count == _BATCH or (count and (count + 1) * longest > _BATCH_CHARACTERS):
            bounds.append(number)
            longest = length
    return [
        Texts(texts=texts.texts[start:stop], pairs=None if texts.pairs is None else texts.pairs[start:stop])
        for start, stop in itertools.pairwise([*bounds, len(lengths)])
    ]
