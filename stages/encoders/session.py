"""An encoder that is found, identified and loaded once, each step when it is first needed.

Torch takes a second to load, and transformers several: they are imported only where they are used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.errors import IdentityError, SettingsError
from ...cache.identity import Identity, differences
from ..hardware import as_asked, cpu_precision, has_no_gpu
from ..progress import Note, Report, Step, silent
from ..settings import AUTO, OTHER_MAX_LENGTH, ChunkPooling, ExtractSettings, Long, Precision
from .files import EncoderFiles, find_encoder, recorded_encoder
from .pooling import Feature, Pooling, parse_features
from .recipe import Recipe, TextSettings, has_recipe, read_recipe, read_text_settings, read_truncation_side

if TYPE_CHECKING:
    import torch

    from .encoder import Encoder, EncoderSettings
    from .int8 import Likeness
    from .long_texts import LongTextSettings


_OVERLAP = 8  # of this many parts of a chunk, one is also in the next chunk, unless the settings say otherwise


class EncoderSession:
    """One encoder with its settings. Every property is computed at its first use, and kept."""

    def __init__(self, settings: ExtractSettings, report: Report = silent) -> None:
        self.settings, self._report = settings, report
        self._pairs = settings.text_pair_column is not None
        self._encoder: Encoder | None = None
        self._likeness: Likeness | None = None

    @classmethod
    def from_identity(
        cls,
        identity: Identity,
        record_encoder: Mapping[str, Any],  # `encoder` of the record: name, folder and revision
        *,
        where: Path,  # the cache or run that the record stands in
        encoder: str | None = None,  # a folder or hub id, where the encoder is no longer where the record says
        device: str = "auto",
        batch_tokens: int | None = None,  # as in ExtractSettings, like the arguments beside it
        allow_pickled_weights: bool = False,
        report: Report = silent,
    ) -> EncoderSession:
        """Find the encoder of a cache or a run again, and check that it is the same one.

        Raises:
            IdentityError: the encoder is not the one of the identity.
            EncoderError: the encoder cannot be found.
            DamagedError: the record does not say which encoder it is.
        """
        name, revision = (encoder, None) if encoder is not None else recorded_encoder(record_encoder, where)
        settings = ExtractSettings(
            encoder=name,
            revision=revision,
            text_pair_column="pair" if identity.pairs else None,
            features=identity.features,
            prefix=identity.prefix,
            max_length=identity.max_length,
            long=Long(identity.long),
            overlap=identity.overlap if identity.long == Long.CHUNKS else None,
            chunk_pooling=ChunkPooling(identity.chunk_pooling or ChunkPooling.MEAN),
            precision=Precision(identity.computed_in),
            batch_tokens=batch_tokens,
            device=device,
            allow_pickled_weights=allow_pickled_weights,
        )
        session = cls(settings, report)
        if clauses := differences(session.identity, identity, our_name=session.files.name, their_name=str(where)):
            raise IdentityError(
                f"encoder {session.files.name} is not the one that {where} was made with: they differ in "
                f"{'; '.join(clauses)}; pass the right one with `encoder`"
            )
        return session

    @functools.cached_property
    def files(self) -> EncoderFiles:
        """The encoder's files, which may have to be downloaded."""
        settings, pickles = self.settings, self.settings.allow_pickled_weights
        self._report(Step("finding the encoder", 0, 0, "files"))
        return find_encoder(settings.encoder, revision=settings.revision, allow_pickled_weights=pickles)

    @functools.cached_property
    def identity(self) -> Identity:
        """The identity of the features that this encoder gives with these settings."""
        features, prefix, recipe = self._features, self._prefix, self._recipe  # refused before anything slow
        long_texts = self._long_texts
        with ThreadPoolExecutor(
            1
        ) as thread:  # a second for each GB; where torch is asked for the precision, it takes one
            hashes, precision = thread.submit(self.files.hashes), self._precision[0]
            return Identity(
                **hashes.result(),
                modules_sha256=None if recipe is None else self.files.modules_sha256(),
                model=None if recipe is None else recipe.words,
                prefix=prefix,
                prefix_pooled=not prefix or recipe is None or recipe.includes_prompt,
                lower_case=self._texts.lower_case,
                pairs=self._pairs,
                max_length=self._max_length,
                truncation_side=read_truncation_side(self.files),
                long=long_texts.long.value,
                overlap=long_texts.overlap,
                chunk_pooling=long_texts.pooling,
                precision=Precision.FLOAT32.value if precision is Precision.INT8 else precision.value,
                quantization=precision.value if precision is Precision.INT8 else "none",
                features=tuple(feature.name for feature in features),
            )

    @functools.cached_property
    def _features(self) -> tuple[Feature, ...]:
        names, name, found = self.settings.features, self.files.name, has_recipe(self.files)
        if tuple(names) == (AUTO,):
            names = (Pooling.MODEL if found else Pooling.CLS,)
        features = parse_features(names, self.files.layers())
        if not found and any(feature.pooling is Pooling.MODEL for feature in features):
            raise SettingsError(
                f"encoder {name} has no feature 'model': its folder has no modules.json that says how its vectors are "
                "made; choose `features` such as cls or mean"
            )
        return features

    @functools.cached_property
    def _recipe(self) -> Recipe | None:
        """The recipe of the feature ``model``; None where that is not among the features."""
        wanted = any(feature.pooling is Pooling.MODEL for feature in self._features)
        return read_recipe(self.files) if wanted else None

    @functools.cached_property
    def _texts(self) -> TextSettings:
        return read_text_settings(self.files)

    @functools.cached_property
    def _max_length(self) -> int:
        return self.settings.max_length or self._texts.max_length or OTHER_MAX_LENGTH

    @functools.cached_property
    def _prefix(self) -> str:
        settings, texts, recipe = self.settings, self._texts, self._recipe
        prompt = settings.prompt
        if prompt is None and settings.prefix is None and recipe is not None:
            prompt = texts.default_prompt
        if prompt is not None and prompt not in texts.prompts:
            known = ", ".join(texts.prompts)
            raise SettingsError(
                f"`prompt` is {prompt!r}; encoder {self.files.name} "
                + (f"has the prompts {known}" if known else "has no prompts; give the text itself as `prefix`")
            )
        chosen = settings.prefix or "" if prompt is None else texts.prompts[prompt]
        dataclasses.replace(settings, prompt=None, prefix=chosen)  # refused, where it is too long
        return chosen

    @functools.cached_property
    def device(self) -> torch.device:
        from ..devices import choose_device

        return choose_device(self.settings.device)

    @functools.cached_property
    def _precision(self) -> tuple[Precision, str]:
        wanted = self.settings.precision
        if self.settings.device in (AUTO, "cpu") and has_no_gpu():
            return cpu_precision() if wanted is Precision.AUTO else as_asked(wanted)
        from ..devices import choose_precision

        return choose_precision(wanted, self.device)

    @functools.cached_property
    def _long_texts(self) -> LongTextSettings:
        from .long_texts import LongTextSettings

        settings = self.settings
        if settings.long is not Long.CHUNKS:
            return LongTextSettings(long=settings.long)
        overlap = self._max_length // _OVERLAP if settings.overlap is None else settings.overlap
        return LongTextSettings(long=settings.long, overlap=overlap, pooling=settings.chunk_pooling)

    @functools.cached_property
    def encoder_settings(self) -> EncoderSettings:
        from .encoder import EncoderSettings

        settings, int8 = self.settings, self._precision[0] is Precision.INT8
        return EncoderSettings(
            features=self._features,
            device=self.device,
            precision=Precision.FLOAT32 if int8 else self._precision[0],
            int8=int8,
            prefix=self._prefix,
            max_length=self._max_length,
            pairs=self._pairs,
            batch_tokens=settings.batch_tokens,
            lower_case=self._texts.lower_case,
            truncation_side=read_truncation_side(self.files),
            long_texts=self._long_texts,
            recipe=self._recipe,
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded unless it is loaded already: as an earlier run did, or by transformers."""
        if self._encoder is None:
            from .trials import recall, remember

            self._report(Step("loading the encoder", 0, 0, "files"))
            self._encoder = recall(self.identity, self.device, self.load_packed)
            if self._encoder is None:
                from .hf import load_encoder  # which loads transformers

                self._encoder = load_encoder(self.files, self.encoder_settings)
                remember(self.identity, self.device, self._encoder)
            notes = list(self._encoder.notes)
            if tuple(self.settings.features) == (AUTO,) and self._recipe is None:
                notes.append(
                    f"the folder of encoder {self.files.name} does not say how its vectors are made (it has no "
                    "modules.json): the feature is cls, the first token's; others are chosen with `features`"
                )
            if self.encoder_settings.int8:
                from .int8 import UNCOMPILED
                from .native.loops import is_missing

                notes += [UNCOMPILED] if is_missing() else []
            for note in notes:
                self._report(Note(note))
        return self._encoder

    @property
    def is_loaded(self) -> bool:
        return self._encoder is not None

    def load_packed(self, packed: Any) -> Encoder | None:
        """Load the encoder by `fast_load.load_packed`. It is unproven, so `use` it after a proof."""
        from .fast_load import load_packed

        return load_packed(self.files, self.encoder_settings, packed)

    def use(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def compare_with_float32(self, texts: Sequence[str], pairs: Sequence[str] | None) -> None:
        """Where the encoder computes in int8, encode some texts in float32 beside it, for the record."""
        settings, encoder = self.encoder_settings, self.encoder
        if not settings.int8 or not texts:
            return
        from .int8 import likeness

        self._report(Step("comparing with float32", 0, 0, "texts"))
        in_float32 = dataclasses.replace(settings, int8=False)
        plain = None
        if encoder.config is not None:
            from .fast_load import load_packed

            plain = load_packed(self.files, in_float32, encoder.config.to_record())
        if plain is None:
            from .hf import load_encoder

            plain = load_encoder(self.files, in_float32)
        self._likeness = likeness(encoder, plain, texts, pairs)

    def plan(self, window_rows: int) -> dict[str, Any]:
        """What a cache's plan says of how rows are batched."""
        encoder = self.encoder
        return {
            "batch_tokens": encoder.batch_tokens,
            "window_rows": window_rows,
            "device": self.device.type,
            "path": encoder.path.value,
        }

    @property
    def any_batch_tokens(self) -> bool:
        """Whether free memory chose the plan's number of tokens in a batch: another run's number does as well."""
        return self.settings.batch_tokens is None and self.device.type == "cuda"

    def record(self) -> dict[str, Any]:
        """What a cache's record says of the encoder: ``precision_reason``, and what it takes to load it again."""
        files, config = self.files, self.encoder.config
        encoder = {"name": files.name, "folder": str(files.folder), "revision": files.revision}
        packed = {} if config is None else {"packed": config.to_record()}
        recipe = {} if self._recipe is None else {"model": str(self._recipe)}
        alike = {} if self._likeness is None else {"likeness": dataclasses.asdict(self._likeness)}
        return {"precision_reason": self._precision[1], "encoder": {**encoder, **recipe, **packed}, **alike}
