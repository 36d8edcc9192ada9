"""Attention over sequences that lie end to end in one matrix; each attends to itself alone.

`SelfAttention` is for every token. `OneQueryAttention` and `AbsorbedAttention` are for one token of each sequence.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from ..native.loops import compiled
from .linear import Linear, padded_rows
from .states import RowNorm

Tensor = torch.Tensor
Norm = Callable[[Tensor], Tensor]
"""A normalisation of the last dimension, in float32 whatever the products run in."""
# Attention's small products take up to a third less time where the number of keys is a multiple of `_KEYS`. To add more
# than `_MOST_ADDED` keys for that takes longer than it saves; ``bench/attention.py`` shows both.
_KEYS, _MOST_ADDED = 16, 11
_QUERIES = 64  # at least, in a block of a long sequence


class Token(enum.Enum):
    """The one token of a sequence that a feature needs."""

    FIRST = 0
    LAST = -1


class Mask(Protocol):
    """What is added to a score, by how far the key stands after the query. Hashable, for a batch makes it once."""

    def __call__(self, distances: Tensor) -> Tensor:
        """(n,) int64 to (n,) or (heads, n) float32; minus infinity where the key is not seen."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A token sees itself, so many tokens before it and so many after it. None: no limit."""

    before: int | None
    after: int | None

    def __call__(self, distances: Tensor) -> Tensor:
        before, after = (len(distances) if limit is None else limit for limit in (self.before, self.after))
        return torch.zeros(len(distances)).masked_fill_((distances < -before) | (distances > after), -torch.inf)


CAUSAL = Window(None, 0)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Rope:
    """Rotary positions (Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864).

    The first numbers of each head are pairs, and a pair turns by position times its frequency. As a complex number, it
    turns in one multiplication. Where an encoder's pairs are (n, n + half), `LayerBuilder` orders the weights anew.
    """

    frequencies: Tensor  # (pairs,) float32
    scale: float = 1.0  # of queries and of keys
    neighbours: bool = False  # whether the encoder's own pairs are (2 n, 2 n + 1)

    def order(self, width: int) -> Tensor:
        """(width,) int64: which of a head's numbers in the encoder's order stands at each place here."""
        pairs = len(self.frequencies)
        order = torch.arange(width)
        if not self.neighbours:
            order[: 2 * pairs] = torch.arange(2 * pairs).view(2, pairs).T.reshape(-1)
        return order

    def turns(self, positions: Tensor) -> Tensor:
        """(n,) int64 to (n, 1, pairs) complex64, for each position."""
        angles = positions.float()[:, None, None] * self.frequencies
        return torch.polar(torch.full_like(angles, self.scale), angles)

    def turn(self, heads: Tensor, turns: Tensor) -> None:
        """Turn (sequences, length, heads, width) in place; ``turns`` are those of each position from 0 to length."""
        part = heads[..., : 2 * len(self.frequencies)]
        part = part.view(*part.shape[:-1], -1, 2)
        if part.dtype == torch.float32:
            torch.view_as_complex(part).mul_(turns)
        else:
            part.copy_(torch.view_as_real(torch.view_as_complex(part.float()) * turns))


@dataclasses.dataclass(frozen=True)
class Block:
    """Some queries of each sequence, and the keys that they may see."""

    queries: slice
    keys: slice
    mask: Tensor | None = None
    """(queries, keys) or (1, heads, queries, keys), added to the scores."""
    causal: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Sequences of equal length that lie end to end."""

    tokens: slice  # their rows in the matrix
    sequences: slice  # their places in the batch
    count: int  # of sequences
    length: int  # tokens in each
    keys: int
    """How many keys each sequence may be given: its own, and some of its neighbour's up to a number that is quick."""
    _made: dict[Any, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made for the first layer that asks for it."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def parts(self, tokens: int) -> list[tuple[slice, Group]]:
        """The group in groups of about so many tokens, whose rows are their own matrix; and these rows in the batch."""
        return self.once(("parts", tokens), lambda: list(self._parts(tokens)))  # type: ignore[no-any-return]

    def _parts(self, tokens: int) -> Iterator[tuple[slice, Group]]:
        made: dict[Any, Any] = {}
        most = max(1, tokens // self.length)
        for start in range(0, self.count, most):
            count, first = min(most, self.count - start), self.tokens.start + start * self.length
            sequences = slice(self.sequences.start + start, self.sequences.start + start + count)
            rows = slice(0, count * self.length)
            part = Group(rows, sequences, count, self.length, self.length, made)  # no neighbour's keys follow the last
            yield slice(first, first + rows.stop), part

    def sees_all(self, mask: Mask | None) -> bool:
        """Whether a mask adds nothing to any score."""
        length = self.length
        return mask is None or self.once(("adds", mask), lambda: not mask(torch.arange(1 - length, length)).any())

    def blocks(self, mask: Mask | None, dtype: torch.dtype) -> list[Block]:
        """All queries in one block, or in several where a mask hides most keys of a long sequence."""
        return self.once((mask, dtype), lambda: list(self._blocks(mask, dtype)))  # type: ignore[no-any-return]

    def _blocks(self, mask: Mask | None, dtype: torch.dtype) -> Iterator[Block]:
        length, whole = self.length, slice(0, self.length)
        added = None if mask is None else mask(torch.arange(1 - length, length)).to(dtype)
        if added is None or not added.any():
            others = torch.zeros(self.keys, dtype=dtype)
            others[length:] = -torch.inf  # for keys that are another's
            yield Block(whole, slice(0, self.keys), None if self.keys == length else others.expand(length, -1))
            return
        if not added[..., :length].any() and bool((added[..., length:] == -torch.inf).all()):
            yield Block(whole, whole, causal=True)  # which no added key could disturb
            return
        seen = (added > -torch.inf).view(-1, 2 * length - 1).any(0).nonzero()
        before, after = length - 1 - int(seen[0]), int(seen[-1]) - (length - 1)
        step = max(_QUERIES, -(-(before + after) // _KEYS) * _KEYS)
        if step + before + after > 3 * length // 4:
            rows = pad(_by_place(added, length), (0, self.keys - length), value=-torch.inf)
            yield Block(whole, slice(0, self.keys), rows if rows.ndim == 2 else rows[None])
            return
        made: dict[tuple[int, int, int], Tensor] = {}
        for start in range(0, length, step):
            queries = slice(start, min(start + step, length))
            keys = slice(max(0, start - before), min(length, queries.stop + after))
            shape = queries.stop - start, keys.stop - keys.start, keys.start - start
            if shape not in made:
                first = length + keys.start - queries.stop  # the distance from the last query to the first key
                rows = _by_place(added[..., first : first + shape[0] + shape[1] - 1], shape[0])
                made[shape] = rows if rows.ndim == 2 else rows[None]
            yield Block(queries, keys, made[shape])


def _by_place(by_distance: Tensor, queries: int) -> Tensor:
    """(..., queries + keys - 1), from the last query's distance to the first key on, to (..., queries, keys)."""
    return by_distance.unfold(-1, by_distance.shape[-1] - queries + 1, 1).flip(-2)


def group_sequences(lengths: Sequence[int]) -> list[Group]:
    """Find the runs of equal length, from each sequence's length."""
    groups, first, row = [], 0, 0
    rows = padded_rows(sum(lengths))
    for length, equal in itertools.groupby(lengths):
        count, added = len(list(equal)), -length % _KEYS
        end, last = first + count, row + count * length
        room = 0 < added <= _MOST_ADDED and last + added <= rows
        groups.append(Group(slice(row, last), slice(first, end), count, length, length + added if room else length))
        first, row = end, last
    return groups


def token_rows(groups: Sequence[Group], token: Token) -> Tensor:
    """The row of that token of each sequence, (sequences,) int64, with zeros up to a number that suits products."""
    count = groups[-1].sequences.stop
    rows = torch.zeros(padded_rows(count), dtype=torch.int64)
    skipped = [0 if token is Token.FIRST else group.length - 1 for group in groups]
    starts = [torch.arange(g.tokens.start + n, g.tokens.stop, g.length) for g, n in zip(groups, skipped, strict=True)]
    rows[:count] = torch.cat(starts)
    return rows


def token_mask(mask: Mask | None, group: Group, token: Token) -> Tensor | None:
    """That token's rows of a mask, (1 or heads, length) float32. None for no mask."""
    if mask is None:
        return None
    first = 0 if token is Token.FIRST else 1 - group.length
    added: Tensor = group.once((mask, token), lambda: mask(torch.arange(first, first + group.length)))
    return added.view(-1, group.length) if added.any() else None


class Attention(Protocol):
    """The attention of a layer, before its output projection."""

    def __call__(self, states: Tensor, groups: Sequence[Group], /) -> Tensor:
        """Take (tokens, width), in the products' dtype; rows past the last group belong to no sequence.

        Returns (tokens, heads x head width), in that dtype, finite in every row. For one token a sequence it
        is (sequences, heads x head width), with more rows as in `token_rows`.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """What weights do not say of attention. ``norms`` are of each head's queries and keys, before they turn."""

    heads: int
    key_value_heads: int  # fewer where several queries share a key (Ainslie et al., GQA, 2023)
    width: int  # of each head
    scale: float | None = None  # of the scores; None for 1 / sqrt(width)
    mask: Mask | None = None
    rope: Rope | None = None
    norms: tuple[RowNorm, RowNorm] | None = None

    def turns(self, group: Group) -> Tensor | None:
        """`Rope.turns` of a group's sequences."""
        rope = self.rope
        return None if rope is None else group.once(rope, lambda: rope.turns(torch.arange(group.length)))

    def prepare(self, heads: Tensor, turns: Tensor | None, *, of_keys: bool) -> None:
        """Normalise and turn queries or keys, (sequences, tokens, heads, width), in place."""
        if self.norms is not None:
            heads.copy_(self.norms[of_keys](heads.float()))
        if self.rope is not None and turns is not None:
            self.rope.turn(heads, turns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """Scaled dot-product attention of every token."""

    heads: Heads
    query_key_value: Linear
    together: int | None = None
    """Tokens, about, whose queries, keys and values are computed together, in a core's cache; None for all."""

    def __call__(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        how = self.heads
        attention = states.new_empty(len(states), how.heads * how.width)
        if self.together is None:
            query_key_value = self.query_key_value(states)
            for group in groups:
                attend(query_key_value, group, how, out=attention)
        else:
            for group in groups:
                for rows, part in group.parts(self.together):
                    attend(self.query_key_value(states[rows]), part, how, out=attention[rows])
        attention[groups[-1].tokens.stop :] = 0
        return attention


def attend(query_key_value: Tensor, group: Group, how: Heads, *, out: Tensor) -> None:
    """Scaled dot-product attention within each sequence of a group; ``query_key_value`` is changed in place.

    A sequence's keys and values may run on over the first tokens of the next sequence, or over the rows past the last
    one: so the additional keys need no copy. Their values must be finite, since they are multiplied by zero.

    Takes (tokens, (heads + 2 x key-value heads) x width), contiguous: queries, keys and values. Writes the group's rows
    of ``out``, (tokens, heads x width).
    """
    row, share = query_key_value.shape[1], how.heads // how.key_value_heads
    offset = query_key_value.storage_offset() + group.tokens.start * row

    def part(first: int, heads: int, tokens: slice, step: int = 1) -> Tensor:
        """(sequences, heads, tokens, width), of heads that begin with the ``first`` of all."""
        shape = (group.count, heads, tokens.stop - tokens.start, how.width)
        strides = (group.length * row, step * how.width, row, 1)
        return query_key_value.as_strided(shape, strides, offset + tokens.start * row + first * how.width)

    whole = slice(0, group.length)
    for of_keys, first, heads in ((False, 0, how.heads), (True, how.heads, how.key_value_heads)):
        how.prepare(part(first, heads, whole).transpose(1, 2), how.turns(group), of_keys=of_keys)
    loops = compiled()
    if loops is not None and loops.attends(query_key_value, group.length, how.width) and group.sees_all(how.mask):
        loops.attend(
            query_key_value[group.tokens],
            sequences=group.count,
            length=group.length,
            heads=how.heads,
            key_value_heads=how.key_value_heads,
            scale=how.width**-0.5 if how.scale is None else how.scale,
            out=out[group.tokens],
        )
        return
    rows = out[group.tokens].view(group.count, group.length, how.heads, how.width)
    for block in group.blocks(how.mask, query_key_value.dtype):
        key = part(how.heads, how.key_value_heads, block.keys)
        value = part(how.heads + how.key_value_heads, how.key_value_heads, block.keys)
        for number in range(share):  # the queries that share keys in turn, so that no key is copied
            query = part(number, how.key_value_heads, block.queries, share)
            mask = block.mask if block.mask is None or block.mask.ndim == 2 else block.mask[:, number::share]
            by_head = scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=block.causal, scale=how.scale
            )
            rows[:, block.queries, number::share] = by_head.transpose(1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneQueryAttention:
    """Scaled dot-product attention of one token of each sequence."""

    heads: Heads
    token: Token
    query: Linear
    key_value: Linear

    def __call__(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        how = self.heads
        query = self.query(states[token_rows(groups, self.token)]).view(-1, 1, how.heads, how.width)
        key_value = self.key_value(states).view(len(states), 2, how.key_value_heads, how.width)
        attention = torch.zeros_like(query).view(len(query), how.key_value_heads, -1, how.width)
        for group in groups:
            turns = how.turns(group)
            own = query[group.sequences]
            how.prepare(own, None if turns is None else turns[[self.token.value]], of_keys=False)
            others = key_value[group.tokens].view(group.count, group.length, 2, -1, how.width)
            key, value = others.unbind(2)
            how.prepare(key, turns, of_keys=True)
            mask = token_mask(how.mask, group, self.token)
            if mask is not None:
                mask = mask.to(states.dtype).expand(how.heads, -1).reshape(1, how.key_value_heads, -1, group.length)
            attention[group.sequences] = scaled_dot_product_attention(  # queries that share keys stand as its tokens
                own.view(group.count, how.key_value_heads, -1, how.width),
                key.transpose(1, 2),
                value.transpose(1, 2),
                attn_mask=mask,
                scale=how.scale,
            )
        return attention.view(len(query), -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsorbedAttention:
    """Scaled dot-product attention of one token of each sequence, with neither rotary positions nor norms of heads.

    With one query q a sequence, q . (K x) is (K'q) . x, and the weighted mean of V x over the tokens is V times the
    weighted mean of x. So K' is applied to the query and V to the mean: once a sequence instead of once a token, as in
    DeepSeek-V2's multi-head latent attention (2024), https://arxiv.org/abs/2405.04434. It takes states in float32.
    """

    token: Token
    query: Linear
    key: Tensor  # (heads, head width, width) float32
    value: Tensor  # (heads, width, head width) float32
    divisor: float  # of the scores
    mask: Mask | None
    dtype: torch.dtype

    def __call__(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        heads, _, width = self.key.shape
        chosen = states[token_rows(groups, self.token)]
        query = self.query(chosen.to(self.dtype)).float() / self.divisor
        query = torch.bmm(query.view(len(chosen), heads, -1).transpose(0, 1), self.key)  # (heads, sequences, width)
        query = query.transpose(0, 1).contiguous()  # (sequences, heads, width)
        means = torch.zeros_like(query)
        for group in groups:
            tokens = states[group.tokens].view(group.count, group.length, width)
            scores = torch.bmm(query[group.sequences], tokens.transpose(1, 2))  # (sequences, heads, length)
            if (mask := token_mask(self.mask, group, self.token)) is not None:
                scores += mask
            torch.bmm(torch.softmax(scores, dim=2), tokens, out=means[group.sequences])
        attention = torch.bmm(means.transpose(0, 1), self.value)  # (heads, sequences, head width)
        return attention.transpose(0, 1).reshape(len(chosen), -1).to(self.dtype)
