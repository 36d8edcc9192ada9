"""Attention over sequences that lie end to end: what each would give alone, whatever stands around it."""

from __future__ import annotations

import pytest
import torch
from headstart.stages.encoders.packed.attention import Heads, attend, group_sequences
from headstart.stages.encoders.packed.linear import padded_rows
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

HEADS, PER_HEAD = 2, 8
PLAIN = Heads(heads=HEADS, key_value_heads=HEADS, width=PER_HEAD)


def alone(found: torch.Tensor, length: int) -> torch.Tensor:
    """(length, 3 x width) of one sequence to (heads, length, width / heads)."""
    query, key, value = found.view(length, 3, HEADS, PER_HEAD).permute(1, 2, 0, 3)
    return scaled_dot_product_attention(query[None], key[None], value[None])[0]


@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 4)), min_size=1, max_size=4, unique_by=lambda each: each[0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_each_sequence_attends_to_itself_alone(groups: list[tuple[int, int]], dtype: torch.dtype, seed: int) -> None:
    """Also where keys are added that are another's, or nobody's."""
    lengths = [length for length, count in sorted(groups, reverse=True) for _ in range(count)]
    torch.manual_seed(seed)
    found = torch.randn(padded_rows(sum(lengths)), 3 * HEADS * PER_HEAD).to(dtype)
    found[sum(lengths) :] = 1000.0  # rows of no sequence
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for group in group_sequences(lengths):
        assert set(lengths[group.sequences]) == {group.length}
        out = found.new_empty(len(found), HEADS * PER_HEAD)
        attend(found, group, PLAIN, out=out)
        together = out[group.tokens].view(group.count, group.length, HEADS, PER_HEAD).transpose(1, 2)
        for number in range(group.count):
            start = group.tokens.start + number * group.length
            expected = alone(found[start : start + group.length], group.length)
            torch.testing.assert_close(together[number], expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("lengths", "keys"),
    [([31, 31], [32]), ([32, 32], [32]), ([33], [33]), ([61], [64]), ([59, 5], [64, 5]), ([5], [16])],
)
def test_keys_are_added_up_to_a_multiple_of_16_where_that_pays_and_there_is_room(
    lengths: list[int], keys: list[int]
) -> None:
    assert [group.keys for group in group_sequences(lengths)] == keys
