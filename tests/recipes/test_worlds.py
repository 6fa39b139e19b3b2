"""Dictionaries on worlds with known features: what is scored, and that it tells good from bad."""

from dataclasses import replace

import pytest
import torch

from pellucid.core.errors import ConfigError
from pellucid.core.unit import Site
from pellucid.data.worlds import FORMS, WORLDS
from pellucid.data.worlds.teacher import TeacherConfig
from pellucid.dictionaries import build_coder
from pellucid.recipes.dictionary import choose_dictionary
from pellucid.recipes.worlds import READS, WRITES, plan_world, recover, score

FLAT = replace(FORMS["flat"], d=16, features=24, l0=2.0)
FIGURES = {
    "fvu",
    "l0",
    "silent",
    "mcc",
    "mcc_chance",
    "mcc_permuted",
    "f1",
    "uniqueness",
    "seconds",
    "redundancy_70",
    "redundancy_80",
    "redundancy_90",
}


def chosen(*texts: str, latents: int = 24, k: int = 2):
    return [choose_dictionary(text, latents=latents, k=k) for text in texts]


@pytest.mark.parametrize("config", [cls.tiny() for cls in WORLDS], ids=lambda c: c.kind)
def test_every_world_is_fitted_and_scored(config):
    planned = plan_world("w", config, chosen("topk", "jumprelu"), tokens=128, batch=64)
    found = list(recover(planned, rows=64))
    assert [(one.world, one.dictionary) for one in found] == [("w", "topk"), ("w", "jumprelu")]
    for one in found:
        assert set(one.figures) == FIGURES
        assert 0 <= one.figures["mcc"] <= 1 + 1e-6
        assert 0 <= one.figures["f1"] <= 1


def test_a_world_with_two_sides_takes_transcoders():
    planned = plan_world("teacher", TeacherConfig.tiny(), chosen("topk"), tokens=64, batch=64)
    fit = planned.run.fits[0]
    assert (fit.reads, fit.writes) == (READS, WRITES)
    assert plan_world("f", FLAT, chosen("topk"), tokens=64, batch=64).run.fits[0].writes == READS


def test_the_true_dictionary_scores_one_and_a_random_one_chance():
    world = FLAT.build()
    _, config = chosen("topk")[0]
    site = Site.parse(READS)
    coder = build_coder(config, name="true", reads=site, writes=site, d_in=16, d_out=16)
    random = score(world, coder, rows=4096, seed=0)
    assert random["mcc"] == pytest.approx(random["mcc_chance"], abs=0.05)
    with torch.no_grad():
        coder.decoder.table().copy_(world.directions)
        assert coder.encoder is not None
        coder.encoder.table().copy_(world.directions)
    true = score(world, coder, rows=4096, seed=0)
    assert true["mcc"] == pytest.approx(1.0, abs=1e-5)
    assert true["uniqueness"] == 1.0
    assert true["f1"] > 0.6 > random["f1"]
    # Writes dealt out anew have nothing to do with the reads.
    assert true["mcc_permuted"] < true["mcc"] / 2


def test_fitting_recovers_more_than_chance():
    planned = plan_world("flat", FLAT, chosen("topk"), tokens=60_000, batch=128)
    figures = next(recover(planned, rows=4096)).figures
    assert figures["mcc"] > figures["mcc_chance"] + 0.2
    assert figures["fvu"] < 0.5


def test_all_dictionaries_see_the_same_rows_and_are_the_same_again():
    both = plan_world("flat", FLAT, chosen("topk", "abstopk"), tokens=256, batch=64)
    alone = plan_world("flat", FLAT, chosen("abstopk"), tokens=256, batch=64)
    first = list(recover(both, rows=64))[1].figures
    second = next(recover(alone, rows=64)).figures
    assert {k: v for k, v in first.items() if k != "seconds"} == {
        k: v for k, v in second.items() if k != "seconds"
    }


def test_what_cannot_be_built_is_told_before_anything_is_fitted():
    with pytest.raises(ConfigError, match="a pursuit reads along its own decoder"):
        plan_world("t", TeacherConfig.tiny(), chosen("topk", "pursuit"), tokens=64, batch=64)
    with pytest.raises(ConfigError, match="nonzeros"):
        plan_world("f", FLAT, chosen("expander:atoms.nonzeros=17"), tokens=64, batch=64)
