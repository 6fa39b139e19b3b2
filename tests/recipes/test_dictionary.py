"""Dictionaries by name, with changes, as complete fits."""

import pytest

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import AddressError, ConfigError
from pellucid.core.unit import Site
from pellucid.data.document import DataConfig
from pellucid.dictionaries import DICTIONARIES
from pellucid.recipes.dictionary import FitRun, choose_dictionary, plan_fits, warm
from pellucid.train.schedule import ScheduleConfig

OUT = "blocks.0.ffn:out"


def run(*texts: str, **more) -> FitRun:
    chosen = [(*choose_dictionary(text, latents=64, k=4), OUT, OUT) for text in texts]
    return FitRun(source="cache", fits=plan_fits(chosen, steps=10, batch=32), steps=10, **more)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_name_takes_the_size_asked_for(name):
    label, config = choose_dictionary(name, latents=256, k=8)
    assert label == name
    assert config.latents == 256
    assert config.k in (8, None)
    assert getattr(config.gate, "l0", 8.0) == 8.0


def test_changes_are_dotted_fields():
    label, config = choose_dictionary(
        "scale:router.experts=8,router.gate=p,gate.k=3,auxk=0.5,name=wide", latents=64, k=4
    )
    assert label == "wide"
    assert config.router is not None
    assert (config.router.experts, config.router.gate, config.k) == (8, "p", 3)
    assert config.auxk == 0.5
    assert choose_dictionary("topk:skip=true", latents=8, k=2)[1].skip is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topkk", r"^dictionary 'topkk': did you mean 'topk'\?$"),
        ("topk:gate.kk=3", r"no field gate\.kk; did you mean 'k'\?$"),
        ("topk:gat.k=3", r"no field gat\.k; did you mean 'gate'\?$"),
        ("topk:skip", r"expected field=value, found 'skip'$"),
        ("topk:gate.k=three", r"gate\.k: expected int, found 'three'"),
        ("topk:gate.k=65", None),
        ("switch:router.experts=7", r"latents: expected a multiple of router\.experts = 7"),
    ],
)
def test_a_wrong_change_is_named(text, message):
    if message is None:  # more than there are is found once the dictionary is built
        assert choose_dictionary(text, latents=64, k=4)[1].k == 65
        return
    with pytest.raises(ConfigError, match=message):
        choose_dictionary(text, latents=64, k=4)


def test_a_fit_knows_its_plan_and_its_rate_falls_with_the_root_of_the_latents():
    fit = run("topk").fits[0]
    assert (fit.coder.plan, fit.coder.batch) == (10, 32)
    assert fit.lr == pytest.approx(2e-4 * (2**14 / 64) ** 0.5)
    assert fit.lr == pytest.approx(3.2e-3)


def test_adam_has_no_decay():
    config = run("topk")
    optim = config.optim(config.fits[0])
    assert (optim.weight_decay, optim.unit_decay, optim.betas) == (0.0, 0.0, (0.9, 0.999))
    assert optim.lr == config.fits[0].lr


def test_two_dictionaries_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"two dictionaries are named 'topk'; name one with"):
        run("topk", "topk:gate.k=3")
    names = [fit.name for fit in run("topk", "topk:gate.k=3,name=other").fits]
    assert names == ["topk", "other"]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ConfigError, match="it names a folder"):
        run(f"topk:name={name}")


def test_what_a_run_refuses():
    with pytest.raises(ConfigError, match="expected at least one dictionary"):
        run()
    with pytest.raises(ConfigError, match=r"^seed: expected at least 0, found -1$"):
        run("topk", seed=-1)
    with pytest.raises(ConfigError, match=r"^batch: expected at least 1, found 0$"):
        run("topk", batch=0)
    chosen = [(*choose_dictionary("topk", latents=8, k=2), "nowhere", OUT)]
    with pytest.raises(AddressError, match="expected MODULE:in or MODULE:out"):
        plan_fits(chosen, steps=1, batch=1)


def test_sites_are_named_once_in_order():
    a, b = "blocks.0.ffn:in", "blocks.0.ffn:out"
    config = choose_dictionary("topk", latents=8, k=2)[1]
    fits = plan_fits([("t", config, a, b), ("s", config, b, b)], steps=1, batch=1)
    assert FitRun(source="x", fits=fits).sites == (Site.parse(a), Site.parse(b))


def test_a_run_survives_json():
    config = run("topk", "scale", "expander", "jumprelu", "gated", "pursuit", "matryoshka")
    assert from_dict(FitRun, to_dict(config)) == config
    streamed = config.streamed(DataConfig(), context=16)
    assert streamed.harvest is not None
    assert streamed.harvest.sites == (OUT,)
    assert streamed.harvest.tokens == 10 * 4096
    assert from_dict(FitRun, to_dict(streamed)) == streamed


def test_the_warm_up_has_a_ceiling():
    schedule = ScheduleConfig(kind="wsd", warmup_share=0.05)
    assert warm(schedule, 1_000).warmup_share == 0.05
    assert warm(schedule, 100_000).warmup_share == pytest.approx(0.01)
