"""Rotary positions: by hand, relative, and equal to Llama's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from pellucid.nn.rope import rope_angles, rotate


def test_angles_by_hand():
    cos, sin = rope_angles(torch.tensor([[0, 2]]), 4, 100.0)
    # D = 4, θ = 100: steps 100^0 = 1 and 100^(−1/2) = .1; position 2 turns by 2 and .2.
    assert cos.shape == sin.shape == (1, 2, 2)
    assert cos[0, 0].tolist() == [1.0, 1.0]
    assert cos[0, 1].tolist() == [
        pytest.approx(math.cos(2), abs=1e-6),
        pytest.approx(math.cos(0.2), abs=1e-6),
    ]
    assert sin[0, 1].tolist() == [
        pytest.approx(math.sin(2), abs=1e-6),
        pytest.approx(math.sin(0.2), abs=1e-6),
    ]


def test_a_quarter_turn_by_hand():
    # Pairs are (x0, x2) and (x1, x3); the first turns by 90°, the second by 0.
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    cos, sin = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
    assert rotate(x, cos, sin).flatten().tolist() == [-3.0, 2.0, 1.0, 4.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 99))
def test_a_product_depends_on_the_distance_alone(first, second, shift, seed):
    torch.manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        turned = [rotate(v, *rope_angles(torch.tensor([[p]]), 8, 1e4)) for v, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum().item()

    # Angles are float32: at position 1,000 they round by 6e-5.
    assert product(first, second) == pytest.approx(product(first + shift, second + shift), abs=2e-3)


def test_lengths_are_kept():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    turned = rotate(x, *rope_angles(torch.arange(5).expand(2, 5), 8, 1e4))
    # cos² + sin² = 1 to float32.
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=1e-6)


def test_position_zero_does_not_turn():
    x = torch.randn(1, 2, 1, 8)
    assert torch.equal(rotate(x, *rope_angles(torch.zeros(1, 1, dtype=torch.long), 8, 1e4)), x)


@pytest.mark.parametrize(("dim", "theta"), [(2, 1e4), (32, 1e4), (64, 5e5)])
def test_equal_to_llamas(dim, theta):
    config = LlamaConfig(
        hidden_size=3 * dim,
        num_attention_heads=3,
        head_dim=dim,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    position = torch.tensor([[0, 1, 63, 100, 4095], [5, 4, 3, 2, 1]])
    q, k = torch.randn(2, 2, 3, 5, dim)
    theirs = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(q, position))
    angles = rope_angles(position, dim, theta)
    for ours, other in zip((rotate(q, *angles), rotate(k, *angles)), theirs):
        # float32 angles up to 4,095 round by 2e-4; both take them from the same products.
        torch.testing.assert_close(ours, other, atol=5e-4, rtol=0)


def test_the_output_keeps_the_type_of_the_input():
    angles = rope_angles(torch.arange(3)[None], 4, 1e4)
    assert angles[0].dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float64):
        assert rotate(torch.randn(1, 2, 3, 4).to(dtype), *angles).dtype == dtype


def test_rows_may_stand_at_different_positions():
    x = torch.randn(1, 1, 3, 4).expand(2, 1, 3, 4)
    both = rotate(x, *rope_angles(torch.tensor([[0, 1, 2], [7, 8, 9]]), 4, 1e4))
    for row, start in enumerate((0, 7)):
        alone = rotate(x[:1], *rope_angles(torch.arange(start, start + 3)[None], 4, 1e4))
        assert torch.equal(both[row], alone[0])
