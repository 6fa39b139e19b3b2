"""Harvest the sites of a named model over a named corpus."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pellucid.data.activations import ActivationCache, HarvestConfig, harvest
from pellucid.data.document import DataConfig
from pellucid.data.packing import Corpus, prepare
from pellucid.recipes.host import OpenHost, expand_sites, open_host
from pellucid.recipes.prepare import cache_folder, pick_device

HELD_OUT_ROWS = 65_536
LONGEST = 1024  # positions of a window where nothing else is asked


@dataclass(frozen=True, kw_only=True)
class HarvestRequest:
    """What is asked of a harvest, before the model has said how wide and long it is."""

    site: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A module's input or output: blocks.1.ffn:out, 'model.layers.*.mlp:in'. Repeat for more."""
    data: str = "embedded"
    """Where the text comes from: embedded, a file or folder, or hub:NAME[:CONFIG]."""
    tokens: int = 2_000_000
    """Rows to keep of the training text."""
    validation_tokens: int | None = None
    """Rows to keep of the validation text, for held-out figures; by default 65,536, or nine tenths
    of a smaller text."""
    context: int | None = None
    """Positions of a window; by default the model's own context, at most 1,024."""
    batch: int = 16
    """Windows of one forward pass."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which rows are kept."""
    shard_rows: int = 65_536
    """Rows of one shard; bounds memory."""
    first: Literal["drop", "keep"] = "drop"
    """Whether position 0 of a window, where attention sinks, gives a row."""
    nonfinite: Literal["refuse", "drop"] = "refuse"
    """What to do with rows that hold NaN or inf."""
    seed: int = 0
    """Seed of the documents' order and of the shuffle."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def resolve(self, opened: OpenHost, corpus: Corpus) -> HarvestConfig:
        """The config for one model and text: wildcards expanded, context and held-out rows set."""
        return HarvestConfig(
            sites=expand_sites(self.site, opened.model),
            tokens=self.tokens,
            context=self.context or min(opened.context, LONGEST),
            validation_tokens=self.validation_tokens or held_out_rows(corpus),
            batch=self.batch,
            dtype=self.dtype,
            shard_rows=self.shard_rows,
            first=self.first,
            seed=self.seed,
            nonfinite=self.nonfinite,
        )


def text_of(data: DataConfig, opened: OpenHost, report: Callable[[str, int, int], None]) -> Corpus:
    """The corpus under the model's own tokenizer."""
    return prepare(
        data,
        vocab_size=opened.tokenizer.vocab_size,
        cache=cache_folder(),
        tokenizer=opened.tokenizer,
        progress=report,
    )


def held_out_rows(corpus: Corpus) -> int:
    """Rows of validation text to keep where nothing else is asked."""
    # Not every token gives a row: a tenth is more than windows lose at their first positions.
    return min(HELD_OUT_ROWS, max(1, len(corpus.validation.tokens) * 9 // 10))


def harvest_sites(
    model: str,
    request: HarvestRequest,
    out: Path,
    *,
    overwrite: bool,
    report: Callable[[str, int, int], None],
) -> ActivationCache:
    """The cache of a request in ``out``; goes on with an interrupted one."""
    device = pick_device(request.device)
    opened = open_host(model, device=device)
    corpus = text_of(DataConfig(source=request.data), opened, report)
    return harvest(
        opened.host,
        corpus,
        request.resolve(opened, corpus),
        out,
        model=opened.identity,
        device=device,
        progress=report,
        overwrite=overwrite,
    )
