"""What a user asks for becomes a complete run, on a cache or on a model."""

from pathlib import Path

import pytest

from pellucid.core.errors import AddressError, ConfigError, DataError
from pellucid.recipes.fit_request import FitRequest

IN, OUT = "blocks.0.ffn:in", "blocks.0.ffn:out"


def ask(**more) -> FitRequest:
    return FitRequest(**{"latents": 32, "k": 3, "tokens": 64, "batch": 16, "device": "cpu", **more})


def planned(request: FitRequest, source: Path) -> list[tuple[str, str, str]]:
    run, _ = request.resolve(str(source))
    return [(fit.name, fit.reads, fit.writes) for fit in run.fits]


def test_on_a_cache_every_site_gets_every_dictionary(harvested: Path):
    found = planned(ask(dictionary=("topk", "expander")), harvested)
    assert found == [
        ("topk-blocks.0.ffn.in", IN, IN),
        ("topk-blocks.0.ffn.out", OUT, OUT),
        ("expander-blocks.0.ffn.in", IN, IN),
        ("expander-blocks.0.ffn.out", OUT, OUT),
    ]
    assert planned(ask(dictionary=("topk",), site=(OUT,)), harvested) == [("topk", OUT, OUT)]


def test_the_plan_is_whole_batches_of_the_rows_asked_for(harvested: Path):
    run, opened = ask(dictionary=("topk",), site=(OUT,), tokens=70, seed=4).resolve(str(harvested))
    assert opened is None
    assert (run.steps, run.batch, run.seed, run.harvest) == (4, 16, 4, None)
    assert run.fits[0].coder.plan == 4
    assert run.fits[0].coder.latents == 32


def test_transcoders_take_two_sites(harvested: Path):
    request = ask(transcoder=("topk", "jumprelu:skip=true,name=s"), reads=IN, writes=OUT)
    assert planned(request, harvested) == [("topk", IN, OUT), ("s", IN, OUT)]


def test_on_a_model_activations_are_streamed(trained: Path, source: Path):
    request = ask(dictionary=("topk",), site=("blocks.*.ffn:out",), data=str(source))
    run, opened = request.resolve(str(trained))
    assert opened is not None
    assert [fit.name for fit in run.fits] == ["topk-blocks.0.ffn.out", "topk-blocks.1.ffn.out"]
    assert run.harvest is not None
    assert run.data is not None
    assert (run.harvest.context, run.harvest.tokens, run.data.source) == (12, 64, str(source))
    pairs = ask(transcoder=("topk",), reads="blocks.*.ffn:in", writes="blocks.*.ffn:out")
    assert planned(pairs, trained)[1] == (
        "topk-blocks.1.ffn.in",
        "blocks.1.ffn:in",
        "blocks.1.ffn:out",
    )


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"dictionary": ("topk",), "tokens": 15}, ConfigError, "expected at least one batch of 16"),
        ({}, ConfigError, "expected at least one dictionary"),
        ({"transcoder": ("topk",), "reads": IN}, ConfigError, "expected --reads and --writes"),
        ({"dictionary": ("topk",), "site": ("nowhere",)}, AddressError, "expected MODULE:in"),
        ({"dictionary": ("topk", "topk"), "site": (OUT,)}, ConfigError, "are named 'topk'"),
    ],
)
def test_what_is_refused_on_a_cache(harvested: Path, more, error, message):
    with pytest.raises(error, match=message):
        ask(**more).resolve(str(harvested))


def test_what_is_refused_on_a_model(trained: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="add --site"):
        ask(dictionary=("topk",)).resolve(str(trained))
    with pytest.raises(AddressError, match="the model has no module"):
        ask(dictionary=("topk",), site=("blocks.0.fnn:out",)).resolve(str(trained))
    uneven = ask(transcoder=("topk",), reads="blocks.*.ffn:in", writes="blocks.0.ffn:out")
    with pytest.raises(ConfigError, match="expected as many sites as reads = 2, found 1"):
        uneven.resolve(str(trained))
    with pytest.raises(ConfigError, match="neither a run folder nor"):
        ask(dictionary=("topk",), site=(OUT,)).resolve(str(tmp_path))


def test_an_interrupted_harvest_is_no_model(harvested: Path, tmp_path: Path):
    (tmp_path / "harvest.json").write_text("{}")
    with pytest.raises(DataError):
        ask(dictionary=("topk",)).resolve(str(tmp_path))
