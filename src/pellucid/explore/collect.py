"""All there is to read about chosen units, gathered in one pass over held-out documents.

Firing counts, domains, selectivity and contexts come from the half of the text that took no part
in choosing the units. What a unit reads and writes is said by its two directions alone:

    reads   tokens w by cos(read, x̄_w), x̄_w the mean of the site's input over occurrences of w
    writes  tokens w by (E_w − Ē) · write, E the unembedding with the final norm's gain in it

The first asks nothing about the layer: at the first it finds embeddings, later whatever the
residual stream makes of a token. The second is the direct path to the logits, which says less the
further the layer is from the last. Memory: vocabulary · width per site.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.address import format_unit
from pellucid.core.host import Host
from pellucid.core.unit import Context, UnitPool, UnitRecord
from pellucid.data.packing import PADDING, Batch
from pellucid.data.store import Corpus
from pellucid.explore.activity import PoolActivity
from pellucid.explore.choose import ChosenUnit
from pellucid.explore.contexts import TopContexts, Window
from pellucid.explore.halves import SHOW, Halves
from pellucid.explore.parents import group_by_parent
from pellucid.explore.tally import ENTRIES, is_text
from pellucid.explore.token_means import TokenMeans
from pellucid.stats.selectivity import domain_selectivity, domain_shares

NUM_CONTEXTS = 8
NUM_TOKENS = 10  # listed on the read and on the write side
MIN_TOKEN_COUNT = 5  # occurrences that a token's mean input asks for


@torch.no_grad()
def collect_records(
    host: Host,
    pools: Sequence[UnitPool],
    batches: Iterable[Batch],
    corpus: Corpus,
    activity: Sequence[PoolActivity],
    chosen: Sequence[ChosenUnit],
    *,
    unembedding: Float[Tensor, "vocab d"] | None = None,
    contexts: int = NUM_CONTEXTS,
    device: torch.device | str = "cpu",
) -> tuple[UnitRecord, ...]:
    """The records of ``chosen``, in that order. ``host`` is in evaluation mode.

    ``activity`` and ``chosen`` belong to ``pools`` and to the same ``batches`` of
    ``corpus.validation``, a document a row. Without an unembedding of the pool's width, ``writes``
    stays empty.
    """
    if not chosen:
        return ()
    used = sorted({unit.position for unit in chosen})
    pages = [
        _Page(
            pools[position],
            torch.tensor(sorted(c.unit for c in chosen if c.position == position), device=device),
            TopContexts(sum(c.position == position for c in chosen), contexts),
        )
        for position in used
    ]
    sites = {page.pool.spec.reads for page in pages}
    vocab = corpus.tokenizer.vocab_size
    means = {site: TokenMeans(vocab, host.width(site)) for site in sites}
    parents = group_by_parent(corpus.validation)
    halves = Halves(parents.domain)
    for batch in batches:
        kept = host.run(batch.tokens.to(device), keep=sites).kept
        tokens, document = batch.tokens.cpu().long(), batch.document.cpu().long()
        text = is_text(batch, corpus.validation.end_of_text)
        for site in sites:
            means[site].add(kept[site].float().cpu()[text], tokens[text])
        half = torch.full_like(document, PADDING)
        half[text] = halves.of(parents.of[document[text]])
        for page in pages:
            value = page.values(kept[page.pool.spec.reads])
            page.contexts.add(value, tokens, torch.where(half == SHOW, document, PADDING))
    records = {
        (position, unit): _record(
            page, i, activity[position], corpus, means[page.pool.spec.reads], unembedding
        )
        for position, page in zip(used, pages)
        for i, unit in enumerate(page.unit.tolist())
    }
    return tuple(records[c.position, c.unit] for c in chosen)


@dataclass(frozen=True, slots=True)
class _Page:
    """The chosen units of one pool, ascending, and the contexts found for them."""

    pool: UnitPool
    unit: Int[Tensor, " k"]
    contexts: TopContexts

    def values(self, x: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq k"]:
        """The units' values at every position, whatever the order in which a pool lists them."""
        parts: list[Tensor] = []
        for rows in x.flatten(0, 1).split(max(1, ENTRIES // self.pool.spec.num_units)):
            code = self.pool.activate(rows, unit=self.unit)
            place = torch.searchsorted(self.unit, code.unit.contiguous())
            parts.append(torch.zeros_like(code.value).scatter_(1, place, code.value))
        return torch.cat(parts).float().cpu().unflatten(0, x.shape[:2])


def _record(
    page: _Page,
    i: int,
    activity: PoolActivity,
    corpus: Corpus,
    means: TokenMeans,
    unembedding: Tensor | None,
) -> UnitRecord:
    spec, named = page.pool.spec, page.unit[i : i + 1]
    unit = named.cpu()
    fires, tokens = activity.fires[SHOW, unit], activity.tokens[SHOW]
    shares = zip(activity.domains, domain_shares(fires, tokens)[0].tolist())
    reads = means.nearest(
        page.pool.read(named)[0].float().cpu(), listed=NUM_TOKENS, min_count=MIN_TOKEN_COUNT
    )
    writes = _promoted(page.pool.write(named)[0].float().cpu(), unembedding)
    text = corpus.tokenizer.token_text
    return UnitRecord(
        pool=spec.name,
        unit=int(unit),
        address=format_unit(int(unit), spec),
        fires=int(fires.sum()),
        tokens=int(tokens.sum()),
        selectivity=domain_selectivity(fires, tokens).item(),
        domains=tuple(sorted(shares, key=lambda pair: -pair[1])),
        reads=tuple((text(token), score) for token, score in reads),
        writes=tuple((text(token), score) for token, score in writes),
        contexts=tuple(_context(window, corpus) for window in page.contexts.top(i)),
    )


def _promoted(write: Tensor, unembedding: Tensor | None) -> list[tuple[int, float]]:
    if unembedding is None or unembedding.shape[1] != len(write):
        return []
    table = unembedding.float().cpu()
    score = (table - table.mean(0)) @ write
    top = score.topk(min(NUM_TOKENS, len(score)))
    return list(zip(top.indices.tolist(), top.values.tolist()))


def _context(window: Window, corpus: Corpus) -> Context:
    split = corpus.validation
    return Context(
        tokens=tuple(corpus.tokenizer.token_text(token) for token in window.tokens),
        values=window.values,
        focus=window.focus,
        document=split.ids[window.document],
        domain=corpus.domains[int(split.domain[window.document])],
    )
