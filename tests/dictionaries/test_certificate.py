"""Figures about whether sparse rows could be identified, beside a dictionary's results."""

from dataclasses import replace

import pytest
import torch

from pellucid.core.unit import Site
from pellucid.dictionaries import DICTIONARIES, build_coder
from pellucid.dictionaries.atoms import ExpanderAtomsConfig
from pellucid.dictionaries.certificate import certificate_figures

SITE = Site.parse("m:out")


def coder(name: str, latents: int, k: int):
    config = replace(DICTIONARIES[name].with_k(k), latents=latents)
    if name == "expander":
        config = replace(config, atoms=ExpanderAtomsConfig(nonzeros=4, mask="clustered"))
    return build_coder(config, name="x", reads=SITE, writes=SITE, d_in=8, d_out=8)


def test_atoms_in_two_blocks_by_hand():
    """Two disjoint blocks of 4 places, in which flat atoms of one block meet everywhere."""
    made = coder("expander", 16, 1)
    with torch.no_grad():
        made.decoder.table().copy_(torch.tensor([1.0, -1.0, 1.0, 1.0]).expand(16, 4))
    found = certificate_figures(made)
    # q = k + 1 = 2k = 2 atoms of one block reach 4 of 2·4 places: ε = 1/2, and β = 1 for flat rows.
    assert found["beta"] == found["beta_median"] == pytest.approx(1)
    assert found["epsilon_k1"] == found["epsilon_2k"] == pytest.approx(0.5)
    assert found["r_id"] == pytest.approx(2 * 0.5)
    assert found["r_omp"] == pytest.approx(0.5 * 3)
    assert found["counting_k1"] == 0.0


def test_a_small_dictionary_has_flatness_alone():
    assert set(certificate_figures(coder("expander", 8, 4))) == {"beta", "beta_median", "beta_p95"}


def test_dense_rows_have_no_certificate_to_speak_of():
    assert certificate_figures(coder("topk", 16, 1)) == {}
