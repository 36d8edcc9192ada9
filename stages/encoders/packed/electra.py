"""ELECTRA (Clark et al., 2020, https://arxiv.org/abs/2003.10555): BERT whose embeddings may be narrower."""

from __future__ import annotations

from typing import ClassVar

from .bert import Bert
from .forward import Embed
from .layers import LayerBuilder
from .states import Input


class Electra(Bert):
    """ELECTRA's discriminator."""

    BASE = "electra"
    PROJECTION: ClassVar = "embeddings_project"

    def embeddings(self, builder: LayerBuilder) -> Embed:
        embed = super().embeddings(builder)
        if f"{self.PROJECTION}.weight" not in builder.weights:
            return embed
        project = builder.linear(self.PROJECTION)
        narrow = Input(None, builder.dtype)
        return lambda sequences, groups, following: following.of(
            project(embed(sequences, groups, narrow).input).float()
        )


ARCHITECTURES = {"electra": Electra}
