"""The config as transformers sees it: round trips, shared fields, strictness."""

import json
from dataclasses import replace

import pytest

from pellucid.core.config import to_dict
from pellucid.core.errors import ConfigError
from pellucid.models.config import TransformerConfig
from pellucid.models.hf_config import SHARED_FIELDS, PellucidConfig
from pellucid.pools import POOLS
from pellucid.pools.dense import DenseConfig

CONFIG = TransformerConfig(
    width=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocab_size=16,
    context=12,
    ffn=(DenseConfig.tiny(),),
    qk_norm=False,
    tied_embeddings=False,
    tied_mlp_width=3,
    rope_theta=5e5,
    norm_eps=1e-5,
)


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
def test_every_pool_survives_the_file(kind, tmp_path):
    config = replace(CONFIG, ffn=(kind.tiny(), DenseConfig(hidden=3)))
    PellucidConfig.of(config, tokens_end=4).save_pretrained(tmp_path)
    again = PellucidConfig.from_pretrained(tmp_path)
    assert again.transformer_config() == config
    assert [again.bos_token_id, again.eos_token_id, again.pad_token_id] == [4, 4, 4]
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["model_type"] == "pellucid"
    assert record["transformer"] == to_dict(config)


def test_fields_have_transformers_names():
    config = PellucidConfig.of(CONFIG)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (8, 2, 16)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 4)
    assert config.max_position_embeddings == 12
    assert config.tie_word_embeddings is False
    assert config.rms_norm_eps == 1e-5
    assert config.eos_token_id is None


@pytest.mark.parametrize(("theirs", "ours"), SHARED_FIELDS)
def test_a_shared_field_wins_wherever_it_is_set(theirs, ours):
    other = {
        "head_dim": 6,
        "kv_heads": 2,
        "heads": 4,
        "tied_embeddings": True,
        "norm_eps": 1e-3,
    }.get(ours, 3)
    # A second layer's slot is not needed: one pool serves all.
    wanted = replace(CONFIG, **{ours: other})
    given = PellucidConfig(to_dict(CONFIG), **{theirs: other})
    assert given.transformer_config() == wanted
    changed = PellucidConfig.of(CONFIG)
    setattr(changed, theirs, other)
    assert changed.transformer_config() == wanted


def test_it_builds_without_arguments_and_shares_nothing():
    first, second = PellucidConfig(), PellucidConfig()
    first.transformer["ffn"][0]["hidden"] = 1
    assert second.transformer_config().ffn == (DenseConfig(),)
    plain = to_dict(CONFIG)
    PellucidConfig(plain).transformer["width"] = 99
    assert plain["width"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 8}, r"here\.json: unknown key widht; did you mean 'width'"),
        ({"ffn": [{"kind": "dence"}]}, r"here\.json: ffn\.0\.kind: found 'dence'.*'dense'"),
        ({"kv_heads": 3, "heads": 4}, r"here\.json: kv_heads: expected a divisor of heads = 4"),
    ],
)
def test_a_wrong_value_names_the_file_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        PellucidConfig(to_dict(CONFIG) | change).transformer_config(where="here.json")
    assert "\n" not in str(caught.value)


def test_a_missing_value_is_named():
    plain = to_dict(CONFIG)
    del plain["ffn"]
    with pytest.raises(ConfigError, match=r"config\.json: ffn is missing"):
        PellucidConfig(plain).transformer_config()


@pytest.mark.parametrize("value", ["abc", [], 3, 0, True])
def test_a_transformer_that_is_no_object_is_named(value, tmp_path):
    PellucidConfig.of(CONFIG).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformer": value}))
    config = PellucidConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        config.transformer_config(where=str(path))
    assert str(caught.value) == (
        f"{path}: transformer: expected an object, found {value!r}; export the model again"
    )


def test_an_empty_transformer_is_no_small_model():
    with pytest.raises(ConfigError, match=r"config\.json: ffn is missing"):
        PellucidConfig({}).transformer_config()
