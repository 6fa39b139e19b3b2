"""Attention against a loop over positions, with grouped keys, masks and a cache."""

import math

import pytest
import torch
from torch import Tensor

from pellucid.nn.attention import Attention
from pellucid.nn.rope import rope_angles, rotate

WIDTH, DIM = 12, 4
# (heads, kv_heads)
GROUPS = [(1, 1), (4, 4), (4, 2), (6, 1)]
EXACT = {"atol": 1e-10, "rtol": 1e-10}  # float64 softmaxes and sums over at most 63 positions


def _attention(heads: int = 4, kv_heads: int = 2, qk_norm: bool = True) -> Attention:
    attention = Attention(
        WIDTH,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=DIM,
        qk_norm=qk_norm,
        layer=3,
        eps=1e-6,
    ).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    return attention


def _rope(batch: int, seq: int, start: int = 0) -> tuple[Tensor, Tensor]:
    return rope_angles(torch.arange(start, start + seq).expand(batch, seq), DIM, 1e4)


def _normed(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def _naive(attention: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """One head, row and query position at a time."""
    batch, seq, _ = x.shape
    group = attention.heads // attention.kv_heads
    cos, sin = _rope(batch, seq)
    mixed = torch.zeros(batch, seq, attention.heads * DIM, dtype=x.dtype)
    for head in range(attention.heads):
        own, shared = slice(head * DIM, head * DIM + DIM), head // group * DIM
        kv = slice(shared, shared + DIM)
        q = x @ attention.query.weight[own].t()
        k = x @ attention.key.weight[kv].t()
        v = x @ attention.value.weight[kv].t()
        if attention.query_norm is not None and attention.key_norm is not None:
            q, k = _normed(q, attention.query_norm.gain), _normed(k, attention.key_norm.gain)
        q, k = (rotate(t[:, None], cos, sin)[:, 0] for t in (q, k))
        for row in range(batch):
            for now in range(seq):
                seen = mask[row, now].nonzero().flatten()
                score = torch.stack([q[row, now] @ k[row, s] / math.sqrt(DIM) for s in seen])
                mixed[row, now, own] = score.softmax(0) @ v[row, seen]
    return mixed @ attention.out.weight.t()


def _causal(batch: int, seq: int) -> Tensor:
    return torch.ones(batch, seq, seq, dtype=torch.bool).tril()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("seq", [1, 2, 9])
def test_equal_to_the_loop(seq, groups, qk_norm):
    attention = _attention(*groups, qk_norm)
    x = torch.randn(2, seq, WIDTH, dtype=torch.float64, requires_grad=True)
    leaves = [x, *attention.parameters()]
    ours, naive = attention(x, _rope(2, seq)), _naive(attention, x, _causal(2, seq))
    torch.testing.assert_close(ours, naive, **EXACT)
    upstream = torch.randn_like(naive)
    expected = torch.autograd.grad(naive, leaves, upstream)
    for found, right in zip(torch.autograd.grad(ours, leaves, upstream), expected):
        torch.testing.assert_close(found, right, **EXACT)


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_mask_says_who_sees_whom(groups):
    attention = _attention(*groups)
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    mask = _causal(2, 9) & (torch.rand(2, 9, 9) < 0.6) | torch.eye(9, dtype=torch.bool)
    torch.testing.assert_close(attention(x, _rope(2, 9), mask), _naive(attention, x, mask), **EXACT)


def test_a_causal_mask_changes_nothing():
    attention, x = _attention(), torch.randn(2, 63, WIDTH, dtype=torch.float64)
    plain = attention(x, _rope(2, 63))
    torch.testing.assert_close(attention(x, _rope(2, 63), _causal(2, 63)), plain, **EXACT)


def test_later_positions_do_not_reach_back():
    attention, x = _attention(), torch.randn(1, 9, WIDTH, dtype=torch.float64)
    other = x.clone()
    other[:, 5:] = torch.randn(1, 4, WIDTH, dtype=torch.float64)
    before, after = attention(x, _rope(1, 9)), attention(other, _rope(1, 9))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


class _Cache:
    """Keeps keys and values, as a cache of transformers does, and the layers it was told."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.layers: list[int] = []

    def __call__(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        self.layers.append(layer)
        if self.kept is not None:
            key = torch.cat((self.kept[0], key), 2)
            value = torch.cat((self.kept[1], value), 2)
        self.kept = key, value
        return self.kept


@pytest.mark.parametrize("parts", [[1] * 9, [4, 1, 1, 1, 1, 1], [4, 5], [1, 7, 1], [9]], ids=str)
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_cache_gives_what_one_pass_gives(groups, parts):
    attention, x = _attention(*groups), torch.randn(2, 9, WIDTH, dtype=torch.float64)
    cache, start, found = _Cache(), 0, []
    for seq in parts:
        found.append(attention(x[:, start : start + seq], _rope(2, seq, start), None, cache))
        start += seq
    torch.testing.assert_close(torch.cat(found, 1), attention(x, _rope(2, 9)), **EXACT)
    assert cache.layers == [3] * len(parts)


def test_a_cache_holds_only_the_grouped_keys():
    attention, cache = _attention(6, 2), _Cache()
    attention(torch.randn(1, 5, WIDTH, dtype=torch.float64), _rope(1, 5), None, cache)
    assert cache.kept is not None
    assert cache.kept[0].shape == cache.kept[1].shape == (1, 2, 5, DIM)


def test_parameters_by_count():
    # Query and out 12 · 16 each, key and value 12 · 8 each, two norms of 4.
    count = sum(p.numel() for p in _attention(4, 2).parameters())
    assert count == 2 * 192 + 2 * 96 + 8
