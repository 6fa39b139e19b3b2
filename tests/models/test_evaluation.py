"""Evaluation mode is lent and given back module by module."""

import pytest
from torch import nn

from pellucid.models.evaluation import evaluating


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("trains", [(), (0,), (1, 2), (0, 1, 2, 3)])
def test_every_module_gets_its_own_mode_back(trains):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    for place, module in enumerate(model.modules()):
        module.training = place in trains
    before = modes(model)
    with evaluating(model):
        assert modes(model) == [False] * 4
    assert modes(model) == before


def test_an_error_inside_restores_too():
    model = nn.Sequential(nn.Dropout())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert modes(model) == [True, True]
