"""A dictionary in the loop: what its optimiser trains, and what an error names."""

import pytest
import torch

from pellucid.core.errors import TrainingError
from pellucid.core.unit import Site
from pellucid.data.activations import Rows
from pellucid.dictionaries import Coder, build_coder, settle
from pellucid.recipes.dictionary import FitRun, choose_dictionary, plan_fits
from pellucid.recipes.fit_loop import fit_loop, fit_optimizer

SITE = Site.parse("a:out")


def made(text: str = "topk", steps: int = 30) -> tuple[Coder, FitRun]:
    chosen = [(*choose_dictionary(text, latents=24, k=3), "a:out", "a:out")]
    run = FitRun(source="x", fits=plan_fits(chosen, steps=steps, batch=64), steps=steps, batch=64)
    fit = run.fits[0]
    coder = build_coder(fit.coder, name="x", reads=SITE, writes=SITE, d_in=6, d_out=6)
    settle(coder, *[batch(0)[0].x[SITE]] * 2)
    return coder, run


def batch(step: int) -> list[Rows]:
    generator = torch.Generator().manual_seed(step)
    index = torch.arange(64)
    x = torch.randn(64, 6, generator=generator) + 3
    return [Rows(x={SITE: x}, token=index, document=index // 4, position=index)]


def test_all_parameters_are_trained_in_one_group_without_decay():
    coder, run = made()
    optimizer = fit_optimizer(coder, run.fits[0], run)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in coder.parameters()}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


@pytest.mark.parametrize(
    "text", ["topk", "jumprelu:gate.weight=0", "expander:atoms.nonzeros=3", "pursuit"]
)
def test_fitting_reduces_what_is_missed(text: str):
    coder, run = made(text, steps=200)
    x = batch(999)[0].x[SITE]

    def missed() -> float:
        with torch.no_grad():
            return float((x - coder(x)).square().sum())

    before = missed()
    optimizer = fit_optimizer(coder, run.fits[0], run)
    fit_loop(coder, optimizer, run.fits[0], run, batch, "cpu").run(0, [])
    # Six dimensions and three of 24 latents: well over a fifth of the error can be learned.
    assert missed() < 0.8 * before


def test_a_loss_that_is_not_finite_names_the_documents():
    coder, run = made()
    optimizer = fit_optimizer(coder, run.fits[0], run)

    def bad(step: int) -> list[Rows]:
        rows = batch(step)
        rows[0].x[SITE][0, 0] = float("nan")
        return rows

    with pytest.raises(TrainingError, match=r"rows of documents 0, 1, 2.* and 8 more"):
        fit_loop(coder, optimizer, run.fits[0], run, bad, "cpu").run(0, [])
