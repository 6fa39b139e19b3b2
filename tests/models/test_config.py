"""The decoder's config: what fits together, and what is refused."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.models.config import TransformerConfig
from pellucid.pools import POOLS

DENSE = POOLS[0].tiny()
CONFIG = TransformerConfig(
    width=8,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=2,
    vocab_size=11,
    context=16,
    ffn=(DENSE,),
)


def test_one_pool_serves_all_layers():
    assert [CONFIG.slot(layer) for layer in range(3)] == [DENSE] * 3


def test_or_each_layer_has_its_own():
    slots = tuple(cls.tiny() for cls in POOLS[:3])
    mixed = replace(CONFIG, ffn=slots)
    assert [mixed.slot(layer) for layer in range(3)] == list(slots)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads: expected a divisor of heads = 4, found 3"),
        ({"head_dim": 3}, "head_dim: rotary positions need an even number, found 3"),
        (
            {"ffn": (DENSE, DENSE)},
            r"ffn: expected one pool for all layers or one per layer \(3\), found 2",
        ),
        ({"rope_theta": 0.0}, r"rope_theta: expected more than 0, found 0\.0"),
        ({"rope_theta": math.nan}, "rope_theta: expected more than 0, found nan"),
        ({"norm_eps": 0.0}, r"norm_eps: expected more than 0, found 0\.0"),
        ({"norm_eps": -1e-6}, "norm_eps: expected more than 0, found -1e-06"),
        ({"ffn": ()}, r"ffn: expected one pool for all layers or one per layer \(3\), found 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        replace(CONFIG, **change)


@given(st.lists(st.sampled_from([cls.tiny() for cls in POOLS]), min_size=1, max_size=4))
def test_a_config_survives_json(slots):
    config = replace(CONFIG, layers=len(slots), ffn=tuple(slots))
    assert from_dict(TransformerConfig, to_dict(config)) == config


def test_an_unknown_kind_of_pool_offers_the_nearest():
    data = to_dict(CONFIG)
    data["ffn"][0]["kind"] = "swigluu"
    with pytest.raises(ConfigError, match=r"ffn\.0\.kind: found 'swigluu'; did you mean 'swiglu'"):
        from_dict(TransformerConfig, data)
