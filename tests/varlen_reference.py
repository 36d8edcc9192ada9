"""A stand-in for `torch.nn.attention.varlen.varlen_attn`, which runs on CUDA devices alone: for tests on a CPU."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

Tensor = torch.Tensor


class ReferenceVarlen:
    """Attention of one sequence after the other, which refuses what torch's kernel refuses.

    It is stricter where torch does not look: offsets must cover all rows, and ``max_q`` and ``max_k`` must be true.
    ``half_only`` is torch's rule of the precision; without it, float32 is taken, too.
    """

    def __init__(self, *, half_only: bool = True) -> None:
        self.half_only = half_only
        self.queries: list[int] = []  # of each call

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        num_splits: int | None = None,
    ) -> Tensor:
        self._check(query, key, value)
        for rows, offsets, longest in ((query, cu_seq_q, max_q), (key, cu_seq_k, max_k)):
            assert offsets.dtype == torch.int32 and offsets.is_contiguous() and offsets.shape == cu_seq_q.shape
            assert offsets[0] == 0 and offsets[-1] == len(rows) and len(offsets) > 1
            assert offsets.diff().min() > 0 and offsets.diff().max() == longest and type(longest) is int
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert type(window_size) is tuple and all(type(side) is int and side >= -1 for side in window_size)
        assert num_splits == 1, "bits must not depend on neighbours"
        self.queries.append(len(query))
        output = query.new_empty(query.shape)
        ends = zip(cu_seq_q[1:].tolist(), cu_seq_k[1:].tolist(), strict=True)
        first_query = first_key = 0
        for last_query, last_key in ends:
            parts = query[first_query:last_query], key[first_key:last_key], value[first_key:last_key]
            made = scaled_dot_product_attention(
                *(part.transpose(0, 1)[None] for part in parts),
                attn_mask=_mask(len(parts[0]), len(parts[1]), window_size),
                scale=scale,
                enable_gqa=enable_gqa,
            )
            output[first_query:last_query] = made[0].transpose(0, 1)
            first_query, first_key = last_query, last_key
        return output

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        taken = (torch.float16, torch.bfloat16) if self.half_only else (torch.float16, torch.bfloat16, torch.float32)
        width = query.shape[2]
        assert query.dtype == key.dtype == value.dtype and query.dtype in taken
        assert query.ndim == key.ndim == 3 and key.shape == value.shape and key.shape[2] == width
        assert all(part.stride(-1) == 1 for part in (query, key, value))
        assert all(stride % 8 == 0 for part in (query, key, value) for stride in part.stride()[:2])
        assert width % 8 == 0 and width <= 256 and query.shape[1] % key.shape[1] == 0


def _mask(queries: int, keys: int, window: tuple[int, int]) -> Tensor:
    """(queries, keys) bool: the last query stands beside the last key."""
    distances = torch.arange(keys)[None] - torch.arange(keys - queries, keys)[:, None]
    before, after = (keys if side == -1 else side for side in window)
    return (distances >= -before) & (distances <= after)
