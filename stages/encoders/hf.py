"""Loads an encoder of any architecture by transformers, and runs it packed where that gives the model's own numbers.

Transformers takes seconds to load, so this module is imported only where nothing else can load the encoder.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors
import tokenizers
import torch
import transformers

from ...cache.errors import EncoderError, SettingsError
from ..devices import DTYPES
from ..settings import ForwardMode, Precision
from ..types import TokenIds
from .backend import Backend
from .config import EncoderConfig, tokenizer_sha256
from .cuda import CopyStream, CudaBackend
from .encoder import Encoder, EncoderSettings, leave_out_prompt
from .files import TOKENIZER_CONFIG, EncoderFiles
from .int8 import to_int8
from .memory import is_memory_full
from .modules import with_modules
from .packed.architecture import Architecture, architecture_class, find_architecture
from .packed.backend import packed_backend
from .packed.cpu import CPU
from .packed.forward import PackedForward
from .packed.kernels import Kernels, UnfitError
from .packed.varlen import CudaKernels, cuda_kernels, find_fused
from .padded import PaddedForward
from .pooling import Feature, Pooling, parse_features
from .recipe import read_text_settings
from .tokenizer import set_up
from .weights import unused_weights

_TRIAL_TOKENS = 16  # of the longer sequence that padding is tried on
_PROBE = "The good film,  isn't it? Caf\u00e9 \uff21\uff11 \u4f60\u597d"  # of which tokenizers make different tokens
_MOST_SPARE = 1024  # rows of the embeddings without a token: room for more, or a number that suits the hardware
_MODEL_KIND = re.compile(rb'"model"\s*:\s*\{\s*"type"\s*:\s*"(\w+)"')
_INTEGERS = {"I8", "U8", "I16", "I32", "torch.int8", "torch.uint8", "torch.int16", "torch.int32"}  # not of counts
_BOTH_DIRECTIONS = {"is_causal": False, "use_bidirectional_attention": True}  # as a decoder's config.json asks for it
_UNFUSED = "on this GPU, each norm and sum is a pass of its own"
_MOVED = 0.1
"""How far a row may be from the model's own, as a share of its length; in float32 its numbers must agree anyway."""
_ROUNDED = {Precision.BFLOAT16: 0.06, Precision.FLOAT16: 0.01}
"""How far a row may move, as a share of its length, where steps are fused and round less often. Through MiniLM's six
layers it moves by a third of that, or less, as a test shows."""
_OTHER_VOCABULARIES = ("tokenizer.model", "tiktoken.model", "tekken.json")
"""Files that transformers reads in the place of a tokenizer class's own."""


def load_encoder(files: EncoderFiles, settings: EncoderSettings) -> Encoder:
    """Load the tokenizer and the weights.

    Raises:
        EncoderError: the files are damaged, do not fit each other, or are not an encoder's.
        SettingsError: ``max_length`` is more than the encoder has positions for, or leaves no room for text.
    """
    with quiet_transformers():
        return _load(files, settings)


def _load(files: EncoderFiles, settings: EncoderSettings) -> Encoder:
    with _loading(files):
        tokenizer = load_tokenizer(files)
        model = load_model(files, settings.pooled)
        notes = _check_vocabulary(files, tokenizer, model)
        if adapters := files.adapters():
            notes.append(f"encoder {files.name}: its adapters ({', '.join(adapters)}) are not applied")
    model.to(settings.device)
    first_token = dataclasses.replace(
        settings, precision=Precision.FLOAT32, features=parse_features([Pooling.CLS], None), recipe=None
    )
    make_padded = functools.partial(
        PaddedForward, model, name=f"encoder {files.name}", padding=tokenizer.pad_token_id or 0
    )
    own = settings.max_length == read_text_settings(files).max_length  # which sentence-transformers reads too
    _check_fit(tokenizer, model, settings, make_padded(first_token), own_length=own)
    if (side := tokenizer.truncation_side) != settings.truncation_side:
        raise EncoderError(
            f"encoder {files.name}: transformers {transformers.__version__} cuts its texts on the {side}, and by its "
            f"files it would be on the {settings.truncation_side}; add "
            f'"truncation_side": "{side}" to the {TOKENIZER_CONFIG} of a copy of {files.model}'
        )
    fast_tokenizer, width = tokenizer.backend_tokenizer, int(model.config.hidden_size)
    set_up(
        fast_tokenizer,
        max_length=settings.cut_at,
        direction=settings.truncation_side,
        lower_case=settings.lower_case,
    )
    settings = leave_out_prompt(settings, fast_tokenizer, name=files.name)
    forward = make_padded(settings)
    segments = "token_type_ids" in tokenizer.model_input_names and getattr(model.config, "type_vocab_size", 0) > 1
    config = packed = None
    architecture = model_architecture(model) if settings.device.type in ("cpu", "cuda") else None
    if architecture is not None:
        try:
            packed, note = _try_packed(architecture, model, settings, forward, segments=segments)
            notes += [] if note is None else [f"{forward.name} ({forward.kind}): {note}"]
        except UnfitError as error:
            notes.append(f"{forward.name} ({forward.kind}) runs padded on this GPU: {error}")
    if architecture is not None and packed is not None:
        if settings.int8:
            to_int8(packed, settings, fast_tokenizer)
        packed_pass = with_modules(packed, files, settings, width=width)  # it keeps the model's weights, not the model
        backend = packed_backend(packed_pass, settings.device)
        if not fast_tokenizer.encode_special_tokens:  # its JSON does not say that
            digest = tokenizer_sha256(fast_tokenizer)
            config = EncoderConfig(architecture=architecture, width=width, segments=segments, tokenizer_sha256=digest)
    elif settings.int8:
        problem = "int8 is for encoders that headstart runs packed, on a CPU; choose `precision` float32"
        raise SettingsError(f"{forward.name} ({forward.kind}) runs padded, and {problem}")
    else:
        tokens = model.get_input_embeddings().num_embeddings
        trial = make_padded(dataclasses.replace(settings, precision=Precision.FLOAT32))
        forward.mode = _try_padding(trial, tokens, settings, width)
        if settings.max_length > _rope_types(model).get("longrope", settings.max_length):
            forward.mode = ForwardMode.SAME_LENGTH  # a longer text turns the positions of all texts beside it
        backend = _padded_backend(forward, files, settings, width=width)
        if forward.mode is ForwardMode.SAME_LENGTH:
            problem = "padding would change its features, so only texts of the same length are batched"
            notes.append(f"{forward.name} ({forward.kind}): {problem}")
    return Encoder(
        settings,
        tokenizer=fast_tokenizer,
        backend=backend,
        width=width,
        segments=segments,
        config=config,
        notes=notes,
    )


def model_architecture(model: Any) -> Architecture | None:
    """The architecture of a model; None where, by its configuration, the packed pass would compute something else."""
    architecture = find_architecture(model.config.to_dict())
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    epsilons = {getattr(norm, "eps", getattr(norm, "variance_epsilon", None)) for norm in norms} - {None}
    same = architecture is not None and epsilons <= {architecture.epsilon} and architecture.matches(model)
    return architecture if same else None


def _padded_backend(forward: PaddedForward, files: EncoderFiles, settings: EncoderSettings, *, width: int) -> Backend:
    if settings.device.type == "cuda":
        copies = CopyStream(settings.device)
        forward.to_device = copies.to_device
        return CudaBackend(with_modules(forward, files, settings, width=width), copies)
    return Backend(with_modules(forward, files, settings, width=width))


def _try_packed(
    architecture: Architecture, model: Any, settings: EncoderSettings, padded: PaddedForward, *, segments: bool
) -> tuple[PackedForward | None, str | None]:
    """The packed forward pass, and what a user should know of it.

    The pass is None where a trial shows that it does not give the model's own numbers.

    Raises:
        UnfitError: the device is a GPU, on which the pass cannot run, or does not give these numbers.
    """
    dtype, width = DTYPES[settings.precision], int(model.config.hidden_size)
    on_gpu = settings.device.type == "cuda"
    kernels: Kernels = CPU
    if on_gpu:
        kernels = cuda_kernels(settings.device, dtype, biased_scores=architecture.BIASED_SCORES)
    batch_tokens = settings.chosen_batch_tokens(ForwardMode.PACKED, width)
    packed = architecture.build(
        model.state_dict(), settings.pooled, dtype=dtype, batch_tokens=batch_tokens, kernels=kernels
    )
    tokens, positions = model.get_input_embeddings().num_embeddings, most_positions(model)
    most = min(positions, settings.max_length)
    lengths = [min(len(settings.left_out) + length, most) for length in architecture.trial_lengths()]
    # RoBERTa's padding, 1, is among them.
    trial = [(1 + np.arange(length) % max(tokens - 1, 1)).astype(np.int32) for length in lengths]
    if segments:
        trial = [np.stack([ids, ids > 2], axis=1).astype(np.int32) for ids in trial]
    with torch.inference_mode():
        ours = _tried(packed, trial) if on_gpu else packed(trial)
        alone = [padded([ids]) for ids in trial]
        theirs = {name: torch.cat([each[name] for each in alone]) for name in alone[0]}
        tolerance = 1e-5 if settings.precision is Precision.FLOAT32 else 0.1
        alike = all(
            torch.allclose(ours[name].float(), values.float(), rtol=tolerance, atol=tolerance)
            for name, values in theirs.items()
        )
        if not (alike and _moved(ours, theirs) <= _MOVED):
            if on_gpu:
                raise UnfitError("without padding, a trial gives other features")
            return None, None
        if not isinstance(kernels, CudaKernels):
            return packed, None
        return packed, _try_fused(packed, kernels, trial, ours, _ROUNDED[settings.precision])


def _try_fused(
    packed: PackedForward,
    kernels: CudaKernels,
    trial: Sequence[TokenIds],
    plain: dict[str, torch.Tensor],
    rounded: float,
) -> str | None:
    """Let a pass run fused kernels, where they give what torch's operators gave for a trial; else, say why not.

    ``rounded`` is how far a row may move, as a share of its length.
    """
    kernels.fused = find_fused()
    if kernels.fused is None:
        return f"{_UNFUSED}: Triton is missing"
    try:
        if _moved(_tried(packed, trial), plain) <= rounded:
            return None
        problem = "a trial gives other features"
    except UnfitError as error:
        problem = str(error)
    kernels.fused = None
    return f"{_UNFUSED}: {problem}"


def _tried(packed: PackedForward, trial: Sequence[TokenIds]) -> dict[str, torch.Tensor]:
    """The features of a trial on a GPU; an UnfitError where it fails, but not for want of memory."""
    try:
        return packed(trial)
    except Exception as error:  # of any kind: Triton compiles its kernels, by a compiler of the machine
        if is_memory_full(error):
            raise
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        raise UnfitError(f"a trial fails: {reason}") from error


def _moved(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """How far a row of features moved at most, as a share of its length; NaN where a number is none."""
    apart = []
    for name, values in theirs.items():
        lengths = values.float().norm(dim=1).clamp_min(1e-30)
        apart.append((ours[name].float() - values.float()).norm(dim=1) / lengths)
    return float(torch.cat(apart).max())


def _try_padding(forward: PaddedForward, tokens: int, settings: EncoderSettings, width: int) -> ForwardMode:
    """Whether sequences may be padded: by a trial in float32, of sequences alone and beside each other.

    Raises:
        EncoderError: a sequence's features depend on its neighbours even without padding, or on chance; or their width
            is not ``width``.
    """
    skipped = len(settings.left_out)
    length = min(settings.max_length, skipped + _TRIAL_TOKENS)
    long = (tokens // 2 + np.arange(length) % (tokens - tokens // 2)).astype(np.int32)
    beside = [(ForwardMode.PADDED, long[: skipped + 3]), (ForwardMode.SAME_LENGTH, long[::-1])]
    for mode, batch in ((mode, [long, other]) for mode, other in beside):
        with torch.inference_mode():
            alone, together = [forward([sequence]) for sequence in batch], forward(batch)
        for name, values in together.items():
            if values.shape != (2, width):
                raise EncoderError(
                    f"{forward.name} ({forward.kind}): its feature {name!r} has {values.shape[-1]} numbers, and not "
                    f"{width}, the hidden_size of its config.json; choose another encoder"
                )
        if all(_agree(torch.cat([each[name] for each in alone]), values) for name, values in together.items()):
            return mode
    raise EncoderError(
        f"{forward.name} ({forward.kind}): a text's features depend on the texts beside it, or on chance; choose "
        "another encoder"
    )


def _agree(alone: torch.Tensor, together: torch.Tensor) -> bool:
    """Whether features agree to 1e-5, relative to the largest number of each row."""
    return bool(((alone - together).abs().amax(1) <= 1e-5 * alone.abs().amax(1)).all())


def _check_vocabulary(files: EncoderFiles, tokenizer: Any, model: Any) -> list[str]:
    """Refuse a tokenizer that lacks the words of its encoder, or has others. Returns what a user should know of it."""
    encoder, made = f"encoder {files.name}", type(tokenizer.backend_tokenizer.model).__name__
    file, kind = files.model / "tokenizer.json", type(tokenizer)
    if file.is_file():
        stored = _MODEL_KIND.search(file.read_bytes())
        if stored and stored[1].decode() != made:
            raise EncoderError(
                f"{encoder}: its tokenizer.json is of the kind {stored[1].decode()}, of which {kind.__name__} makes a "
                f"tokenizer of the kind {made}; in its tokenizer_config.json, set tokenizer_class to "
                "PreTrainedTokenizerFast"
            )
    else:
        needed = [name for field, name in kind.vocab_files_names.items() if field != "tokenizer_file"]
        absent = [name for name in needed or [file.name] if not (files.model / name).is_file()]
        if absent and not any((files.model / name).is_file() for name in _OTHER_VOCABULARIES):
            raise EncoderError(
                f"{encoder}: {files.model} holds neither tokenizer.json nor {absent[0]}, the vocabulary of its "
                f"tokenizer ({kind.__name__}); put the tokenizer's files there that the encoder was published with"
            )
    try:
        embedded = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # of several, or of none
        embedded = None
    if not isinstance(embedded, int) or not hasattr(model.config, "hidden_size"):
        raise EncoderError(
            f"{encoder} ({model.config.model_type}) is not an encoder of texts, or of a kind that "
            "headstart does not know"
        )
    vocabulary = tokenizer.get_vocab()
    tried = tokenizer.backend_tokenizer.encode("a \u2603")  # a word, and one that few vocabularies have
    largest = max([*vocabulary.values(), *tried.ids], default=-1) + 1
    if largest > embedded:
        raise EncoderError(
            f"{encoder}: its tokenizer knows {largest:,} tokens, its model {embedded:,}: they do not belong together"
        )
    words = len(vocabulary.keys() - set(tokenizer.all_special_tokens))
    many_spare = embedded - len(vocabulary) > _MOST_SPARE
    if words < 2 or (many_spare and 2 * len(vocabulary) < embedded):
        raise EncoderError(
            f"{encoder}: its tokenizer knows {len(vocabulary):,} tokens, {words:,} of them not special, its model "
            f"{embedded:,}: the vocabulary is missing, or another model's; put the tokenizer's files there that the "
            "encoder was published with"
        )
    notes = []
    if many_spare:
        problem = "is its vocabulary cut short, or another model's?"
        notes.append(f"{encoder}: its tokenizer knows {len(vocabulary):,} tokens, its model {embedded:,}: {problem}")
    if file.is_file() and kind is not transformers.PreTrainedTokenizerFast:  # others make their own from its vocabulary
        described, given = tokenizers.Tokenizer.from_file(str(file)), tokenizer.backend_tokenizer
        for each in (described, given):  # which `_load` sets
            each.no_truncation()
            each.no_padding()
        if described.encode(_PROBE).ids != given.encode(_PROBE).ids:
            notes.append(
                f"{encoder}: its tokenizer.json describes other tokens than {kind.__name__} gives, which is used; if "
                "those of the file are right, set tokenizer_class to PreTrainedTokenizerFast in its "
                "tokenizer_config.json"
            )
    return notes


def _check_fit(
    tokenizer: Any, model: Any, settings: EncoderSettings, forward: PaddedForward, *, own_length: bool
) -> None:
    """Refuse an encoder or settings that would give wrong features, or none; ``forward`` gives the feature ``cls``.

    ``own_length`` tells whether the encoder's own files say how many tokens it reads: then they count, even where its
    rotary positions, which have no end, were trained on fewer, or its tokenizer says another number.
    """
    encoder, length = forward.name, settings.max_length
    positions = most_positions(model) if own_length else min(most_positions(model), tokenizer.model_max_length)
    if own_length and hasattr(model, "rotary_emb") and "dynamic" not in _rope_types(model):
        positions = length
    special = tokenizer.num_special_tokens_to_add(pair=settings.pairs)
    if length > positions:
        raise SettingsError(f"`max_length` is {length}; {encoder} reads at most {positions} tokens: choose that")
    if getattr(model.config, "attention_type", None) == "block_sparse":  # BigBird's, for which it remembers texts
        most = (5 + 2 * model.config.num_random_blocks) * model.config.block_size
        if length > most:
            problem = "reads longer ones in another way, unless it has read a shorter one before"
            raise SettingsError(f"`max_length` is {length}; choose at most {most}, for {encoder} {problem}")
    if length <= special:
        raise SettingsError(f"`max_length` is {length}, of which special tokens take {special}: no room for text")
    with torch.inference_mode():
        first, second = (forward([np.array([1, token], np.int32)])["cls"] for token in (2, 3))
    if not torch.equal(first, second) or not first.isfinite().all():
        return
    for field, value in _BOTH_DIRECTIONS.items():
        if getattr(model.config, field, None) is value:
            raise EncoderError(
                f"{encoder}: its config.json asks for attention in both directions ({field!r}), which the installed "
                f"release of transformers does not compute for {forward.kind!r}; choose another encoder, or release"
            )
    of_first = [feature for feature in settings.pooled if feature.pooling in (Pooling.CLS, Pooling.POOLER)]
    if of_first:
        name = Pooling.MODEL.value if of_first[0] in settings.model_parts else of_first[0].name
        raise EncoderError(
            f"{encoder}: its first position does not see the tokens after it, as in a decoder, so it cannot stand for "
            f"a text, and the feature {name!r} reads that position; choose `features` such as last or mean"
        )


def load_tokenizer(files: EncoderFiles) -> Any:
    """The fast tokenizer of an encoder, as transformers loads it; an EncoderError where there is none."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        files.model, use_fast=True, trust_remote_code=False, local_files_only=True
    )
    if not tokenizer.is_fast:
        raise EncoderError(f"encoder {files.name} has no fast tokenizer; save one as tokenizer.json beside its weights")
    return tokenizer


def load_model(files: EncoderFiles, features: tuple[Feature, ...]) -> Any:
    """The model of an encoder in float32, as transformers loads it; an EncoderError where it is not whole."""
    encoder = f"encoder {files.name}"
    with files.folder_with_metadata() as folder:
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=not files.pickled,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed, and refused below with a message of ours
        )
    if model.config.is_encoder_decoder:
        raise EncoderError(f"{encoder} is an encoder with a decoder ({model.config.model_type}); not supported")
    # transformers makes up a pooler that was never saved, which matters only where a feature reads it.
    pooled = any(feature.pooling is Pooling.POOLER for feature in features)
    if pooled and getattr(model, "pooler", None) is None:
        raise EncoderError(f"{encoder} ({model.config.model_type}) has no pooler; choose other `features`")
    made_up = sorted(key for key in loading["missing_keys"] if pooled or not key.startswith("pooler."))
    wrong = made_up or sorted(map(str, loading["mismatched_keys"])) or loading["error_msgs"]
    if wrong:
        misfits = f"{len(wrong)} of them, such as {wrong[0]}"
        raise EncoderError(f"{encoder}: its weights do not fit its config.json ({misfits})")
    if unused := unused_weights(loading["unexpected_keys"], model.base_model_prefix):
        raise EncoderError(
            f"{encoder}: {type(model).__name__}, as its config.json describes it, has no place for its weights "
            f"{unused[0]!r} ({len(unused):,} such), so it would be another model; correct config.json, or save the "
            "weights without them if they are of a head"
        )
    known = architecture_class(model.config.to_dict())
    if known is not None and (field := known.unread_field(model.config.to_dict())):
        raise EncoderError(
            f"{encoder}: its config.json has {field!r}: {getattr(model.config, field)!r}, which transformers does not "
            "read, so it would be another model; choose another encoder"
        )
    _check_stored(files, model.base_model_prefix, known)
    positions = str(getattr(model.config, "position_embedding_type", None))
    if positions.startswith("relative"):  # only older releases computed them
        raise EncoderError(f"{encoder}: transformers does not compute the positions of its config.json, {positions!r}")
    if broken := next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise EncoderError(f"{encoder}: its weights {broken!r} hold values that are no numbers (NaN or inf)")
    model.config.return_dict = True  # which a config.json may turn off
    model.config.use_cache = False  # a decoder's keys and values, which only the next token would need
    model.requires_grad_(False)
    return model.eval()


def _check_stored(files: EncoderFiles, base: str, known: type[Architecture] | None) -> None:
    """Refuse weights that transformers takes for others: integers for floats, and one of two of the same name.

    ``base`` may stand before the names. ``known`` is the class of the encoder's architecture, if there is one.
    """
    types = dict[str, str]()
    for file in files.weights:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, "pt") as opened:
                types |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        elif file.suffix == ".bin":  # without the numbers
            pickle = torch.load(file, map_location="meta", weights_only=True)
            types |= {name: str(getattr(weight, "dtype", None)) for name, weight in pickle.items()}
    if whole := unused_weights((name for name, kind in types.items() if kind in _INTEGERS), base):
        raise EncoderError(
            f"encoder {files.name}: its weights {whole[0]!r} ({len(whole):,} such) are integers: they are quantised, "
            "which is not read; choose the encoder that they were made from"
        )
    homes = collections.defaultdict[str, list[str]](list)
    for stored in types:
        for name in known.names_of(stored) if known is not None else [stored.removeprefix(f"{base}.")]:
            homes[name].append(stored)
    if twice := unused_weights((name for name, stored in homes.items() if len(stored) > 1), base):
        raise EncoderError(
            f"encoder {files.name}: it has two weights {twice[0]!r} ({len(twice):,} such), one of them as "
            f"{max(homes[twice[0]], key=len)!r}; save the weights without those that are not its own"
        )


def _rope_types(model: Any) -> dict[str, int]:
    """The kinds of rotary positions of a model, each with the number of tokens that it was first trained on."""
    found = getattr(model.config, "rope_parameters", None) or {}
    kinds = [found, *found.values()]  # of the whole model, or by the types of its layers
    most = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    return {
        kind["rope_type"]: kind.get("original_max_position_embeddings") or most
        for kind in kinds
        if isinstance(kind, dict) and "rope_type" in kind
    }


def most_positions(model: Any) -> int:
    """Most tokens that the model has positions for; RoBERTa's positions start after its padding index."""
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return 1 << 30
    embedding = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embedding, "padding_idx", None)
    return most if padding is None else most - padding - 1


@contextlib.contextmanager
def _loading(files: EncoderFiles) -> Iterator[None]:
    """Turn any exception of transformers while it reads files into an error of one line."""
    try:
        yield
    except (EncoderError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of many kinds, by what is wrong with which file; Rust's panics are no Exception
        reason = files.advice(error) or textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
        raise EncoderError(f"encoder {files.name}: its files in {files.model} cannot be read: {reason}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and reports off the terminal while it loads; errors are raised."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
