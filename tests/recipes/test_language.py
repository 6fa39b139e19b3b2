"""Recipes by name, and run configs that cannot be followed."""

from dataclasses import replace

import pytest
import torch

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.models.presets import ARCHITECTURES, PRESETS, preset
from pellucid.recipes.language import DistilConfig, LanguageRun, recipe, recipe_names


def test_names_are_architecture_and_size():
    names = recipe_names()
    assert set(names) == {f"{a}-{size}" for a in ARCHITECTURES for size in PRESETS}
    assert len(names) == len(ARCHITECTURES) * len(PRESETS)
    for architecture in (
        "dense", "swiglu", "topk-mlp", "peer", "monet-hd", "monet-vd", "pools", "pooled-peer",
    ):  # fmt: skip
        for size in ("tiny", "small", "base"):
            assert f"{architecture}-{size}" in names


@pytest.mark.parametrize("size", PRESETS)
def test_arms_of_one_size_differ_in_the_slot_only(size: str):
    runs = [recipe(f"{architecture}-{size}") for architecture in ARCHITECTURES]
    trunks = [replace(run, model=replace(run.model, ffn=runs[0].model.ffn)) for run in runs]
    assert all(trunk == runs[0] for trunk in trunks)
    assert [run.model.ffn for run in runs] == [preset(a, size).ffn for a in ARCHITECTURES]


def test_larger_models_see_more_tokens_at_a_lower_rate():
    runs = [recipe(f"pools-{size}") for size in PRESETS if size != "demo"]
    tokens = [run.steps * run.tokens_per_step for run in runs]
    rates = [run.optim.lr for run in runs]
    assert tokens == sorted(tokens)
    assert rates == sorted(rates, reverse=True)
    # At tiny the plan is 2,000 steps of 4 sequences of 512 tokens.
    assert tokens[0] == 4_096_000


def test_tokens_of_a_step(config: LanguageRun):
    # 2 sequences of 12 tokens, three times over.
    assert replace(config, accumulate=3).tokens_per_step == 72


def test_a_run_survives_json(config: LanguageRun):
    assert from_dict(LanguageRun, to_dict(config)) == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pools-tiy", "recipe 'pools-tiy': did you mean 'pools-tiny'?"),
        ("peer", "recipe 'peer': did you mean 'peer-"),
        ("tiny", "recipe 'tiny': "),
        ("", "recipe '': expected one of: dense-1b, "),
    ],
)
def test_an_unknown_recipe(name: str, message: str):
    with pytest.raises(ConfigError) as caught:
        recipe(name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "field",
    [
        "steps", "batch", "accumulate", "evaluate_every", "evaluate_tokens", "checkpoint_every",
        "keep_checkpoints", "log_every",
    ],
)  # fmt: skip
def test_counts_start_at_one(config: LanguageRun, field: str):
    with pytest.raises(ConfigError, match=rf"^{field}: expected at least 1, found 0$"):
        replace(config, **{field: 0})


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_one_that_every_generator_takes(config: LanguageRun, seed: int):
    with pytest.raises(
        ConfigError, match=rf"^seed: expected 0 to 9223372036854775807, found {seed}$"
    ):
        replace(config, seed=seed)
    largest = replace(config, seed=2**63 - 1).seed
    assert torch.Generator().manual_seed(largest).initial_seed() == largest


def test_a_mix_is_checked_where_it_is_written():
    with pytest.raises(ConfigError, match=r"^alpha: expected a share from 0 to 1, found 1\.5$"):
        DistilConfig(alpha=1.5)
    with pytest.raises(ConfigError, match=r"^temperature: expected more than 0, found 0\.0$"):
        DistilConfig(temperature=0.0)
