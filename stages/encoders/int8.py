"""``precision=int8``: an encoder that multiplies 8-bit integers, and how far its features are from those in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tokenizers

from ...cache.errors import EncoderError, SettingsError
from ..types import Float64Array
from .encoder import Encoder, EncoderSettings, encode_sequences
from .packed.forward import PackedForward
from .packed.linear_rounded import int8_products
from .packed.quantized import quantize
from .tokenizer import Tokenizer

_TEXTS = (
    "I really liked this film: the plot drags a little, but the acting is superb, and the music stays with you.",
    "Never again! Two hours of my life that I won't get back :-(",
    "Shares fell by 3.2% on Monday, as investors weighed the central bank's decision to raise interest rates.",
    "@someone check https://example.org/page?id=42 #news",
    "The defendant shall, within thirty (30) days of receipt of notice, remedy any breach under section 4.1(b).",
    "Patients with type 2 diabetes were randomised to 10 mg daily or placebo; the outcome was HbA1c at 24 weeks.",
    "def mean(values):\n    return sum(values) / len(values)",
    "SELECT name FROM users WHERE age >= 21 ORDER BY name;",
    "El servicio fue excelente y la comida estaba muy rica.",
    "Die Lieferung kam zu spät, und das Gerät war defekt.",
    "Ce livre raconte l'histoire d'une famille de pêcheurs.",
    "这家餐厅的服务很好，但是价格有点贵。",
    "この映画は本当に面白かったです。",
    "Это лучший телефон, который у меня был.",
    "هذا المنتج رائع جدا",
    "ok",
)
"""Of many kinds, to see which columns of an encoder's states are large."""


UNCOMPILED = (
    "int8 is slower here than it could be: headstart's C++ was not compiled for this version; install g++, and then "
    "headstart again as before, with pip's options --force-reinstall --no-deps --no-cache-dir"
)


@dataclasses.dataclass(frozen=True)
class Likeness:
    """Cosines of features in int8 and in float32, over some texts and all features."""

    texts: int
    median: float
    lowest: float


def to_int8(forward: PackedForward, settings: EncoderSettings, tokenizer: tokenizers.Tokenizer) -> None:
    """Let a pass in float32 multiply 8-bit integers; ``tokenizer`` is set up.

    Raises:
        SettingsError: torch has no such products here.
        EncoderError: the tokenizer makes hardly any tokens of texts in several languages.
    """
    if not int8_products():
        raise SettingsError("torch multiplies no 8-bit integers on this machine; choose `precision` float32")
    encodings = Tokenizer(tokenizer).encode([settings.prefix + text for text in _TEXTS])
    sequences = [np.array(encoding.ids, np.int32)[: settings.max_length] for encoding in encodings if encoding.ids]
    try:
        quantize(forward, sequences)
    except ValueError as error:
        raise EncoderError(f"the encoder's tokenizer makes hardly any tokens: {error}") from None


def likeness(encoder: Encoder, plain: Encoder, texts: Sequence[str], pairs: Sequence[str] | None) -> Likeness:
    """Compare an encoder with the same in float32 on some texts."""
    sequences, _ = encoder.tokenize(texts, pairs)
    ours, theirs = encode_sequences(encoder, sequences), encode_sequences(plain, sequences)
    cosines = [_cosines(ours[name].astype(np.float64), theirs[name].astype(np.float64)) for name in ours]
    return Likeness(len(texts), float(np.median(cosines)), float(np.min(cosines)))


def _cosines(ours: Float64Array, theirs: Float64Array) -> Float64Array:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines: Float64Array = (ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-30)
    return cosines
