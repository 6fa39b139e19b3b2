"""What both decompositions of MONET share: codes, limits, losses, counts and refusals."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import laws
from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code
from pellucid.pools import monet
from pellucid.pools.monet import MonetPool, monet_params
from pellucid.pools.monet_hd import MonetHDConfig
from pellucid.pools.monet_vd import MonetVDConfig

Config = MonetHDConfig | MonetVDConfig

KINDS: dict[str, type[Config]] = {"hd": MonetHDConfig, "vd": MonetVDConfig}
CHANGES: dict[str, dict[str, object]] = {
    "tiny": {},
    "row": {"router": "row"},
    "batch": {"router": "batch"},
    "sparse": {"side": 4, "kept": 2, "neurons": 4},
    "all-kept": {"kept": 3, "heads": 1},
}
VARIANTS: dict[str, Config] = {
    f"{kind}-{name}": replace(KINDS[kind].tiny(), **change)  # pyright: ignore[reportArgumentType]
    for kind in KINDS
    for name, change in CHANGES.items()
}


def _build(config: Config, width: int = 8) -> MonetPool:
    pool = config.build(name="blocks.0.ffn", width=width, output_rms=1.0).double().eval()
    laws.perturb(pool)
    return pool


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_reaches_every_parameter(variant: str):
    pool = _build(VARIANTS[variant]).train()
    y, _ = pool.forward_with_parts(torch.randn(300, 8, dtype=torch.float64))
    y.square().sum().backward()
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.reshape(-1, parameter.shape[-1]).abs().amax(-1) > 0).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_losses_leave_as_weighted_parts_in_training_only(kind: str):
    config = replace(KINDS[kind].tiny(), balance_weight=0.5)
    pool, x = config.build(name="ffn", width=8, output_rms=1.0), torch.zeros(4, 8)
    _, parts = pool.train().forward_with_parts(x)
    # Logits 0: probabilities 1/3 over all entries, gates 1/2 over the two kept.
    assert set(parts) == {"uniformity", "ambiguity"}
    assert parts["uniformity"].item() == pytest.approx(0.5 * math.log(3), rel=1e-6)
    assert parts["ambiguity"].item() == pytest.approx(0.5 * 0.5, rel=1e-6)
    assert pool.eval().forward_with_parts(x)[1] == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_limit_keeps_the_strongest_of_all_units(variant: str, monkeypatch: pytest.MonkeyPatch):
    pool, x = _build(VARIANTS[variant]), torch.randn(9, 8, dtype=torch.float64)
    every = torch.arange(pool.spec.num_units)
    strength = pool.activate(x, unit=every).value.abs() * pool.write(every).norm(dim=-1)
    for chunk in (1 << 20, 1):
        monkeypatch.setattr(monet, "CHUNK_ENTRIES", chunk)
        code = pool.activate(x, limit=5)
        found = code.value.abs() * pool.write(code.unit).norm(dim=-1)
        expected = strength.topk(5).values
        # The same sums, reordered; values reach the hundreds.
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(strength.gather(1, code.unit), found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("router", ["topk", "row"])
@pytest.mark.parametrize("kind", KINDS)
def test_too_many_units_are_listed_only_by_name_or_limit(kind: str, router: str):
    # 70² experts of 14 neurons and a bias: 73,500 > 2^16.
    config = replace(KINDS[kind].tiny(), side=70, kept=4, neurons=14, router=router)
    pool, x = _build(config), torch.randn(3, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"73500 units are too many to list.*unit= or limit="):
        pool.activate(x)
    every = torch.arange(pool.spec.num_units)
    strength = pool.activate(x, unit=every).value.abs() * pool.write(every).norm(dim=-1)
    code = pool.activate(x, limit=200)
    assert code.unit.shape == (3, 200)
    found = strength.gather(1, code.unit).sort(descending=True).values
    torch.testing.assert_close(found, strength.topk(200).values, rtol=1e-12, atol=1e-12)
    laws.law_6_a_unit_occurs_once(_Limited(pool), x)


class _Limited:
    """A pool seen through ``limit``."""

    def __init__(self, pool: MonetPool) -> None:
        self.spec = pool.spec
        self._pool = pool

    def activate(self, x: Tensor) -> Code:
        return self._pool.activate(x, limit=200)


def test_later_rows_change_earlier_outputs_in_batch_training_only():
    x = torch.randn(8, 8, dtype=torch.float64)
    changed = torch.cat([x[:5], 3 * torch.randn(3, 8, dtype=torch.float64)])
    for router, training in (("topk", True), ("row", True), ("batch", False), ("batch", True)):
        pool = _build(replace(MonetHDConfig.tiny(), router=router, side=20, kept=3)).train(training)
        # float64 products of 8 terms: batching changes at most the last bits.
        equal = torch.allclose(pool(x)[:5], pool(changed)[:5], rtol=0, atol=1e-10)
        assert equal == (not (router == "batch" and training))


@pytest.mark.parametrize(
    ("layers", "width", "heads", "neurons", "billions"),
    [(24, 1536, 6, 12, 0.85), (24, 2048, 8, 16, 1.47), (32, 3072, 12, 24, 4.17)],
)
def test_published_parameter_counts(
    layers: int, width: int, heads: int, neurons: int, billions: float
):
    # Attention 4d², two norms, an untied vocabulary of 32,000, a router for every 4 layers.
    slot = monet_params(width, side=512, neurons=neurons, heads=heads, layers_per_router=4)
    total = layers * (slot + 4 * width**2 + 2 * width) + 2 * 32_000 * width + width
    assert round(total / 1e9, 2) == billions


@pytest.mark.parametrize("variant", VARIANTS)
def test_cost_counts_the_parameters(variant: str):
    config = VARIANTS[variant]
    pool = config.build(name="ffn", width=8, output_rms=1.0)
    counted = sum(parameter.numel() for parameter in pool.parameters())
    assert config.cost(8).total == config.cost(8).active == counted


@pytest.mark.parametrize("kind", KINDS)
def test_cost_by_hand(kind: str):
    # n 3, m 2, H 2, d 8: 4nmd + 2nd + 4Hnm + 4dHn = 192 + 48 + 48 + 192.
    cost = KINDS[kind].tiny().cost(8)
    assert cost.forward == 480
    assert cost.training == 1440


@pytest.mark.parametrize("kind", KINDS)
def test_the_free_size_is_the_side(kind: str):
    config = KINDS[kind]()
    assert config.free_size == 512
    assert config.kept == 512 // 16
    assert config.with_size(56) == replace(config, side=56, kept=3)
    assert config.with_size(5).kept == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trips_through_json(variant: str):
    config = VARIANTS[variant]
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize("variant", VARIANTS)
def test_starts_at_the_requested_rms(variant: str):
    pool = VARIANTS[variant].build(name="ffn", width=8, output_rms=0.25).eval()
    # The mean square of relu² on 4,096 rows has a relative standard error of √(23 / 4096) = 7.5 %,
    # from E a⁸ / (E a⁴)² = 2 · 105 / 9; half of that in the root, and once more for the 20,000.
    rms = pool(torch.randn(20_000, 8)).square().mean().sqrt()
    assert rms.item() == pytest.approx(0.25, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_builds_without_memory(kind: str):
    with torch.device("meta"):
        pool = KINDS[kind](router="batch").build(name="ffn", width=2048, output_rms=0.1)
    assert all(parameter.is_meta for parameter in pool.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": 4}, "^kept: expected at most side = 3, found 4; lower it$"),
        ({"neurons": 3}, "^neurons: expected an even number.*found 3; use 4$"),
        ({"heads": 0}, "^heads: "),
        ({"side": 0}, "^side: "),
        ({"balance_weight": -0.1}, "^balance_weight: expected at least 0, found -0.1$"),
        ({"balance_weight": math.nan}, "^balance_weight: expected at least 0, found nan$"),
    ],
)
def test_refuses_in_one_line(kind: str, change: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        replace(KINDS[kind].tiny(), **change)


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_to_build_an_exact_choice_of_one(kind: str):
    with pytest.raises(ConfigError, match=r"^kept: expected at least 2 per head.*no gradient"):
        replace(KINDS[kind].tiny(), kept=1).build(name="ffn", width=8, output_rms=1.0)
