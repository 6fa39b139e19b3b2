"""Dictionaries small enough to compute by hand, and the reduced form of every registered one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig, build_coder
from pellucid.dictionaries.atoms import ExpanderAtomsConfig


@pytest.fixture
def make() -> Callable[..., Coder]:
    """A float64 dictionary on one site of 6, or a transcoder where ``d_out`` is given."""

    def build(
        config: CoderConfig, *, d_in: int = 6, d_out: int | None = None, seed: int = 0
    ) -> Coder:
        site = Site.parse("m:in")
        coder = build_coder(
            config,
            name="d",
            reads=site,
            writes=site if d_out is None else Site.parse("m:out"),
            d_in=d_in,
            d_out=d_in if d_out is None else d_out,
            seed=seed,
        )
        return coder.double()

    return build


@pytest.fixture
def shrink() -> Callable[..., CoderConfig]:
    """A registered config at few latents, k and experts; the rest is as it was."""

    def small(config: CoderConfig, latents: int = 12, k: int = 3) -> CoderConfig:
        router, atoms = config.router, config.atoms
        if router is not None:
            router = replace(router, experts=4, active=min(2, router.active))
        if isinstance(atoms, ExpanderAtomsConfig):
            atoms = replace(atoms, nonzeros=3)
        gate = config.with_k(k).gate
        return replace(config, latents=latents, gate=gate, router=router, atoms=atoms)

    return small
