"""Costs of dictionaries, counted by hand and against the tensors they hold."""

from dataclasses import replace

import pytest

from pellucid.core.unit import Site
from pellucid.dictionaries import DICTIONARIES, build_coder
from pellucid.dictionaries.atoms import ExpanderAtomsConfig
from pellucid.dictionaries.cost import dictionary_cost

READS, WRITES = Site.parse("a:in"), Site.parse("a:out")


def cost(name: str, *, d_in: int = 8, d_out: int | None = None, **more):
    config = replace(DICTIONARIES[name].with_k(3), latents=48, **more)
    if config.router is not None:
        config = replace(config, router=replace(config.router, experts=4, active=2, gate="p"))
    if isinstance(config.atoms, ExpanderAtomsConfig):
        config = replace(config, atoms=replace(config.atoms, nonzeros=2))
    writes = READS if d_out is None else WRITES
    return dictionary_cost(
        build_coder(config, name="x", reads=READS, writes=writes, d_in=d_in, d_out=d_out or d_in)
    )


def test_a_dense_dictionary_by_hand():
    found = cost("topk")
    assert (found.latents, found.active) == (48, 48)
    assert found.encoder_macs == 48 * 8
    assert found.decoder_macs == 3 * 8
    # Encoder and decoder 48·8 each, 48 encoder biases, 8 decoder biases.
    assert found.stored_values == 2 * 48 * 8 + 48 + 8
    assert (found.skip_macs, found.index_bytes) == (0, 0)


def test_a_transcoder_reads_and_writes_other_widths():
    found = cost("topk", d_in=8, d_out=5, skip=True)
    assert found.encoder_macs == 48 * 8
    assert found.decoder_macs == 3 * 5
    assert found.skip_macs == 40
    assert found.stored_values == 48 * 8 + 48 * 5 + 48 + 5 + 40


def test_a_router_evaluates_its_active_experts():
    # Four experts of twelve, two active: the router reads 4·8, the experts 24·8.
    found = cost("switch")
    assert found.active == 24
    assert found.encoder_macs == 4 * 8 + 24 * 8
    # Scaling adds ω and Λ, and costs nothing per row.
    scaled = cost("scale")
    assert scaled.encoder_macs == found.encoder_macs
    assert scaled.stored_values - found.stored_values == 4 + 64


def test_an_expander_holds_and_reads_its_non_zeros():
    found = cost("expander")
    assert found.encoder_macs == 48 * 2
    assert found.decoder_macs == 3 * 2
    assert found.stored_values == 48 * 2 + 48 + 8
    assert found.index_bytes == 0
    atoms = ExpanderAtomsConfig(stored=True)
    assert cost("expander", atoms=atoms).index_bytes == 48 * 2 * 2  # int16
    assert cost("expander-switch").encoder_macs == 4 * 8 + 24 * 2


@pytest.mark.parametrize(
    ("inference", "iterations"), [("refit", 1), ("oneshot", 1), ("gomp", 2), ("omp", 3)]
)
def test_a_solver_correlates_with_all_rows_at_each_iteration(inference, iterations):
    # gomp takes two of three atoms at a time, so it looks twice.
    found = cost("expander", inference=inference, solver_width=2)
    assert found.encoder_macs == iterations * 48 * 2


def test_matching_pursuit_correlates_k_times():
    found = cost("pursuit")
    assert found.encoder_macs == 3 * 48 * 8
    assert found.stored_values == 48 * 8 + 8


def test_without_a_fixed_k_all_latents_may_write():
    assert cost("jumprelu").decoder_macs == 48 * 8
