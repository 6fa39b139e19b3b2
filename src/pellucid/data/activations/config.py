"""What decides every row of a harvest: the config, and the model, tokenizer and text it ran on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.core.config import to_dict
from pellucid.core.errors import AddressError, ConfigError, DataError
from pellucid.core.host import Host
from pellucid.core.unit import Site
from pellucid.data.activations.rows import DType, Layout
from pellucid.data.store import Corpus

POSITIVE = ("tokens", "validation_tokens", "batch", "shard_rows")


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """Which activations are wanted, and how they are kept.

    ``sites`` are ``MODULE:in`` or ``MODULE:out``, without wildcards. ``tokens`` and
    ``validation_tokens`` count rows of the training and the validation text; the end of text and
    padding are none. ``first`` says whether position 0 of a window, where attention sinks, is.
    ``batch`` is in windows of ``context`` positions, ``shard_rows`` the rows of one shard, and
    bounds memory. ``nonfinite`` refuses a harvest with NaN or inf in a row, or drops such rows.
    """

    sites: tuple[str, ...]
    tokens: int
    context: int
    validation_tokens: int = 65_536
    batch: int = 16
    dtype: DType = "float32"
    shard_rows: int = 65_536
    first: Literal["drop", "keep"] = "drop"
    seed: int = 0
    nonfinite: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}, expected at least 1")
        if self.context < 2:
            raise ConfigError(f"context = {self.context}, expected at least 2 positions a window")
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}, expected 0 or more")
        if not self.sites:
            raise ConfigError("sites: expected at least one, for example blocks.3.ffn:out")
        for place, site in enumerate(self.sites):
            if site in self.sites[:place]:
                raise ConfigError(f"sites: {site} is named twice; name it once")
            try:
                Site.parse(site)
            except AddressError as error:
                raise ConfigError(f"sites: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where rows come from: equal origins give equal rows.

    ``model`` names the host by the caller's own keys, ``tokenizer`` and ``corpus`` are identities,
    ``widths`` belong to ``config.sites``.
    """

    model: dict[str, str]
    tokenizer: str
    corpus: str
    config: HarvestConfig
    widths: tuple[int, ...]

    @classmethod
    def of(
        cls, host: Host, corpus: Corpus, config: HarvestConfig, model: Mapping[str, str]
    ) -> "Origin":
        """The origin of rows still to come; an unknown site is the host's ``AddressError``."""
        return cls(
            model=dict(model),
            tokenizer=corpus.tokenizer.identity,
            corpus=corpus.identity,
            widths=tuple(host.width(Site.parse(site)) for site in config.sites),
            config=config,
        )

    @property
    def layout(self) -> Layout:
        """The sites, their widths and the type in which they are kept."""
        return Layout(
            sites=tuple(Site.parse(site) for site in self.config.sites),
            widths=self.widths,
            dtype=self.config.dtype,
        )


def check_same(where: str, kept: Origin, asked: Origin, *, dropped: int) -> None:
    """Refuse what was kept in place of what is asked, by the first field that differs.

    The way to treat rows that are not finite counts only where ``dropped`` rows were left out.
    """
    mend = "ask for the same, choose another folder, or overwrite this one"
    have, want = flat(to_dict(kept)), flat(to_dict(asked))
    for name in have | want:
        if name != "config.nonfinite" and have.get(name) != want.get(name):
            raise DataError(
                f"{where}: holds another harvest: {name}: expected {have.get(name)!r}, "
                f"found {want.get(name)!r}; {mend}"
            )
    if dropped and asked.config.nonfinite == "refuse":
        raise DataError(
            f"{where}: holds another harvest: config.nonfinite: expected 'drop', since {dropped} "
            f"rows with NaN or inf were left out, found 'refuse'; {mend}"
        )


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        deeper = isinstance(item, Mapping)
        found |= flat(item, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": item}
    return found
