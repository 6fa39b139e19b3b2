"""A pool and a host small enough to know by heart."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.core.host import Edit, Trace
from pellucid.core.unit import Code, PoolSpec, Site
from pellucid.data.packing import Batch, evaluation_batches
from pellucid.data.store import Corpus, Split
from pellucid.data.tokenizer import LEAST_VOCABULARY, TextTokenizer, fit_bpe


class TablePool:
    """value = max(x · read, 0) for every unit; silent units are padding."""

    def __init__(self, reads: Tensor, writes: Tensor, axes: tuple[tuple[str, int], ...], name: str):
        self.reads, self.writes = reads, writes
        self.spec = PoolSpec(
            name=name,
            reads=Site(module=name, port="in"),
            writes=Site(module=name, port="out"),
            axes=axes,
            d_in=reads.shape[1],
            d_out=writes.shape[1],
        )

    def read(self, unit: Tensor) -> Tensor:
        return self.reads[unit]

    def write(self, unit: Tensor) -> Tensor:
        return self.writes[unit]

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        listed = torch.arange(self.spec.num_units) if unit is None else unit
        act = x @ self.reads[listed].T
        code = Code(listed.expand(act.shape), (act > 0).to(act.dtype), act)
        if limit is None:
            return code
        top = (code.value.abs() * self.writes.norm(dim=-1)).topk(limit, dim=-1).indices
        return Code(code.unit.gather(-1, top), code.gate.gather(-1, top), code.act.gather(-1, top))

    def decode(self, code: Code) -> Tensor:
        return torch.einsum("...k,...kd->...d", code.value, self.writes[code.unit])

    def rest(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.spec.d_out)


class TableHost:
    """Every site holds ``table[token] + mark[second token of the row]``."""

    def __init__(self, table: Tensor, mark: Tensor | None = None):
        self.table = table
        self.mark = torch.zeros_like(table) if mark is None else mark

    def width(self, site: Site) -> int:
        return self.table.shape[1]

    def run(
        self, tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
    ) -> Trace:
        x = self.table[tokens] + self.mark[tokens[:, 1:2]]
        return Trace(torch.zeros(*tokens.shape, len(self.table)), dict.fromkeys(keep, x))


@pytest.fixture
def make_pool() -> Callable[..., TablePool]:
    """A pool of given reads; writes default to them, axes to one axis."""

    def build(
        reads: Tensor,
        writes: Tensor | None = None,
        axes: tuple[tuple[str, int], ...] | None = None,
        name: str = "blocks.0.ffn",
    ) -> TablePool:
        return TablePool(
            reads,
            reads if writes is None else writes,
            (("neuron", len(reads)),) if axes is None else axes,
            name,
        )

    return build


@pytest.fixture
def make_host() -> Callable[..., TableHost]:
    return TableHost


@pytest.fixture(scope="session")
def letters() -> TextTokenizer:
    """A tokenizer without merges: every ASCII letter is a token."""
    return fit_bpe(["abc"], LEAST_VOCABULARY)


@pytest.fixture
def make_corpus(letters: TextTokenizer) -> Callable[..., Corpus]:
    """A corpus whose validation split holds the given (domain, text) pairs, as ``name0`` on."""

    def build(documents: Sequence[tuple[str, str]], ids: Sequence[str] | None = None) -> Corpus:
        domains = sorted({domain for domain, _ in documents})
        rows = [letters.encode(text) for _, text in documents]
        split = Split(
            tokens=np.array([token for row in rows for token in row], dtype=np.uint16),
            start=np.cumsum([0, *map(len, rows)]),
            num_bytes=np.array([len(text) for _, text in documents]),
            domain=np.array([domains.index(domain) for domain, _ in documents]),
            ids=ids or [f"name{i}" for i in range(len(documents))],
            end_of_text=letters.end_of_text,
        )
        return Corpus(
            tokenizer=letters,
            domains=tuple(domains),
            train=split,
            validation=split,
            identity="test",
        )

    return build


@pytest.fixture
def batches_of() -> Callable[..., list[Batch]]:
    """The validation text as batches, a document a row unless packed."""

    def build(corpus: Corpus, context: int, *, separate: bool = True) -> list[Batch]:
        return list(
            evaluation_batches(
                corpus.validation,
                context=context,
                batch_size=3,
                tokens_per_domain=None,
                separate=separate,
            )
        )

    return build
