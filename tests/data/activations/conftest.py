"""A corpus whose every token is another, and a host whose vectors say which token they are of."""

import os
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.core.host import Edit, Trace
from pellucid.core.unit import Site
from pellucid.data.activations.config import HarvestConfig
from pellucid.data.store import Corpus, Split
from pellucid.data.tokenizer import TextTokenizer

A, B = Site(module="a", port="out"), Site(module="b", port="in")
VALIDATION = 10_000  # added to the tokens of the validation text


class Killed(BaseException):
    """What a kill does to a process, as far as Python sees it."""


class TokenHost:
    """Site a holds (token, position, 7), site b (-token, position / 2).

    ``die_at`` counts passes: that one is killed. ``bad`` are tokens whose vector at site b has a
    NaN, ``large`` those that float16 cannot hold at site a.
    """

    def __init__(
        self,
        *,
        die_at: int | None = None,
        bad: Collection[int] = (),
        large: Collection[int] = (),
    ) -> None:
        self.die_at = die_at
        self.bad = torch.tensor(sorted(bad))
        self.large = torch.tensor(sorted(large))
        self.passes = 0

    def width(self, site: Site) -> int:
        return 3 if site == A else 2

    def run(
        self, tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
    ) -> Trace:
        if self.passes == self.die_at:
            raise Killed
        self.passes += 1
        position = torch.arange(tokens.shape[1]).expand_as(tokens)
        a = torch.stack((tokens, position, torch.full_like(tokens, 7)), -1).float()
        b = torch.stack((-tokens, position / 2), -1).float()
        a[torch.isin(tokens, self.large)] = 1e6
        b[torch.isin(tokens, self.bad), 1] = float("nan")
        sites = {A: a, B: b}
        return Trace(torch.zeros(*tokens.shape, 1), {site: sites[site] for site in keep})


def make(lengths: Sequence[int], first: int, name: str) -> Split:
    """Documents of the given lengths; token values count up from ``first``, which is not 0."""
    return Split(
        tokens=np.arange(first, first + sum(lengths), dtype=np.uint32),
        start=np.cumsum([0, *lengths]),
        num_bytes=np.array([10 * length for length in lengths]),
        domain=np.zeros(len(lengths), dtype=np.int64),
        ids=[f"{name}-{index}" for index in range(len(lengths))],
        end_of_text=0,
    )


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here pulls the plug, so nothing has to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture
def token_host() -> type[TokenHost]:
    return TokenHost


@pytest.fixture
def sites() -> tuple[Site, Site]:
    return A, B


@pytest.fixture
def make_corpus(tokenizer: TextTokenizer) -> Callable[..., Corpus]:
    """A corpus from the lengths of its documents; training tokens count up from 1."""

    def build(
        train: Sequence[int], validation: Sequence[int] = (9, 8, 7), identity: str = "text"
    ) -> Corpus:
        return Corpus(
            tokenizer=tokenizer,
            domains=("a",),
            train=make(train, 1, "train"),
            validation=make(validation, VALIDATION, "held"),
            identity=identity,
        )

    return build


@pytest.fixture
def corpus(make_corpus: Callable[..., Corpus]) -> Corpus:
    """151 training tokens in 20 documents, 24 held out in 3."""
    return make_corpus([3, 14, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 23, 8, 4, 6, 21])


@pytest.fixture
def config() -> Callable[..., HarvestConfig]:
    """A small config for that corpus; every field can be given."""

    def build(
        sites: tuple[str, ...] = ("a:out", "b:in"),
        tokens: int = 100,
        context: int = 8,
        validation_tokens: int = 12,
        batch: int = 2,
        shard_rows: int = 23,
        **others: object,
    ) -> HarvestConfig:
        return HarvestConfig(
            sites=sites,
            tokens=tokens,
            context=context,
            validation_tokens=validation_tokens,
            batch=batch,
            shard_rows=shard_rows,
            **others,
        )

    return build
