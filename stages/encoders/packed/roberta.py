"""RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692) and XLM-R: BERT with other positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .attention import Group
from .bert import Bert


class Roberta(Bert):
    """RoBERTa and XLM-R, which count positions from past the padding token's number."""

    BASE = "roberta"

    @classmethod
    def padding_of(cls, config: Mapping[str, Any]) -> int | None:
        padding: int | None = config.get("pad_token_id", 1)  # 1 where config.json does not name it
        return padding

    def position_ids(self, ids: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
        """As in BERT, but a padding token (a text can spell it out) gets the padding's position and is not counted."""
        if self.position_padding is None:
            return super().position_ids(ids, groups)
        real = (ids != self.position_padding).long()
        counts = torch.cat([real[g.tokens].view(g.count, g.length).cumsum(1).view(-1) for g in groups])
        return counts.mul_(real).add_(self.position_padding)


ARCHITECTURES = {"roberta": Roberta, "xlm-roberta": Roberta}
