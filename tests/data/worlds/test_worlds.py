"""What every world promises, over all of them; names on the command line."""

import dataclasses
from typing import get_args

import pytest
import torch

from pellucid.core.errors import ConfigError
from pellucid.data.worlds import FORMS, WORLDS, World, WorldConfig, WorldRows, named_worlds


def test_the_tuple_is_the_union():
    assert get_args(WorldConfig) == WORLDS


def test_kinds_tell_worlds_apart():
    assert len({config.tiny().kind for config in WORLDS}) == len(WORLDS)


@pytest.mark.parametrize("config", WORLDS)
def test_configs_are_frozen_and_by_keyword(config: type[WorldConfig]):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.tiny().d = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        config("superposition")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("config", WORLDS)
@pytest.mark.parametrize("rows", [1, 63, 100])
def test_a_sample_keeps_its_promises(config: type[WorldConfig], rows: int):
    made = config.tiny()
    world = made.build()
    assert isinstance(world, World)
    assert (world.d, world.num_features) == (made.d, made.features)
    assert world.directions.shape == (made.features, made.d)
    sample = world.sample(rows, seed=0, step=0)
    assert isinstance(sample, WorldRows)
    assert sample.x.shape == sample.y.shape == (rows, made.d)
    assert sample.x.dtype == sample.y.dtype == torch.float32
    assert sample.truth.unit.dtype == torch.long
    assert bool(sample.x.isfinite().all())
    assert bool(((sample.truth.unit >= 0) & (sample.truth.unit < made.features)).all())
    for unit, value in zip(sample.truth.unit, sample.truth.value):
        present = unit[value != 0]
        assert present.unique().shape == present.shape


@pytest.mark.parametrize("config", WORLDS)
def test_worlds_leave_the_global_generators_alone(config: type[WorldConfig]):
    before = torch.get_rng_state()
    config.tiny().build().sample(3, seed=0, step=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_names():
    assert list(named_worlds("superposition")) == ["flat", "tree", "signed", "expander"]
    assert named_worlds("tree") == {"tree": FORMS["tree"]}
    assert [config.kind for config in named_worlds("teacher").values()] == ["teacher"]


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(ConfigError, match="world: found 'teecher'; did you mean 'teacher'"):
        named_worlds("teecher")
