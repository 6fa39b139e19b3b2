"""What a user asks of a fit, and the complete config it becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.core.errors import ConfigError
from pellucid.core.unit import Site
from pellucid.data.activations import ActivationCache
from pellucid.data.activations.manifest import MANIFEST
from pellucid.data.activations.record import RECORD
from pellucid.data.document import DataConfig
from pellucid.dictionaries import CoderConfig
from pellucid.recipes.dictionary import FitRun, choose_dictionary, plan_fits
from pellucid.recipes.harvesting import LONGEST
from pellucid.recipes.host import OpenHost, expand_sites, open_host
from pellucid.recipes.prepare import pick_device

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
Chosen = tuple[str, CoderConfig, str, str]


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """Which dictionaries on which sites, before the source has said what it holds."""

    dictionary: Repeated = ()
    """An SAE by name, with changes if wanted: topk, jumprelu:gate.l0=20,name=j20. Repeat."""
    transcoder: Repeated = ()
    """A dictionary that reads --reads and writes --writes; names as for --dictionary. Repeat."""
    site: Repeated = ()
    """Where the SAEs stand; by default every site of the cache. Repeat for more."""
    reads: str | None = None
    """Site that transcoders read, with wildcards if there are several."""
    writes: str | None = None
    """Site that transcoders write, matched in order with --reads."""
    latents: int = 8192
    """Latents of every dictionary."""
    k: int = 32
    """Latents kept per row, or the L0 aimed at."""
    tokens: int = 2_000_000
    """Rows to fit on; a cache starts again when it ends."""
    batch: int = 4096
    """Rows of a step."""
    data: str = "embedded"
    """Text to stream from, where the source is a model."""
    context: int | None = None
    """Positions of a window, where the source is a model; its own context by default."""
    evaluate_every: int = 250
    """Steps between evaluations on held-out rows."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of weights and order."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def resolve(self, source: str) -> tuple[FitRun, OpenHost | None]:
        """The complete run on a cache or a model, and the model if it had to be opened."""
        steps = self.tokens // self.batch
        if steps < 1:
            raise ConfigError(
                f"tokens: expected at least one batch of {self.batch} rows, found {self.tokens}; "
                "lower batch or raise tokens"
            )
        if any((Path(source) / name).is_file() for name in (MANIFEST, RECORD)):
            cache = ActivationCache.open(Path(source), verify=False)
            known = [str(site) for site in cache.layout.sites]
            return self._run(source, known, steps, streams=False), None
        opened = open_host(source, device=pick_device(self.device))
        if not self.site and self.dictionary:
            raise ConfigError("site: expected at least one with a model as the source; add --site")
        run = self._run(source, [], steps, streams=True, opened=opened)
        return run, opened

    def _run(
        self,
        source: str,
        known: Sequence[str],
        steps: int,
        *,
        streams: bool,
        opened: OpenHost | None = None,
    ) -> FitRun:
        chosen = [*self._saes(known, opened), *self._transcoders(opened)]
        run = FitRun(
            source=source,
            fits=plan_fits(chosen, steps=steps, batch=self.batch),
            steps=steps,
            batch=self.batch,
            seed=self.seed,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
            device=self.device,
        )
        if not streams or opened is None:
            return run
        context = self.context or min(opened.context, LONGEST)
        return run.streamed(DataConfig(source=self.data), context=context)

    def _saes(self, known: Sequence[str], opened: OpenHost | None) -> list[Chosen]:
        sites = self.site or known
        if opened is not None and self.site:
            sites = expand_sites(self.site, opened.model)
        found: list[Chosen] = []
        for text in self.dictionary:
            name, config = choose_dictionary(text, latents=self.latents, k=self.k)
            found += [(_named(name, site, sites), config, site, site) for site in sites]
        return found

    def _transcoders(self, opened: OpenHost | None) -> list[Chosen]:
        if not self.transcoder:
            return []
        if self.reads is None or self.writes is None:
            raise ConfigError("transcoder: expected --reads and --writes; add both")
        reads, writes = [self.reads], [self.writes]
        if opened is not None:
            reads = list(expand_sites(reads, opened.model))
            writes = list(expand_sites(writes, opened.model))
        if len(reads) != len(writes):
            raise ConfigError(
                f"writes: expected as many sites as reads = {len(reads)}, found {len(writes)}"
            )
        found: list[Chosen] = []
        for text in self.transcoder:
            name, config = choose_dictionary(text, latents=self.latents, k=self.k)
            pairs = zip(reads, writes)
            found += [(_named(name, read, reads), config, read, write) for read, write in pairs]
        return found


def _named(name: str, site: str, sites: Sequence[str]) -> str:
    """The name alone on one site; on several with the site's module and port."""
    if len(sites) == 1:
        return name
    place = Site.parse(site)
    return f"{name}-{place.module}.{place.port}"
