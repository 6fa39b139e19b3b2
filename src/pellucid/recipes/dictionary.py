"""Complete configs for fitting dictionaries: which, on which sites, from which activations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pellucid.core.config import check_positive, from_dict, to_dict
from pellucid.core.errors import ConfigError, nearest
from pellucid.core.unit import Site
from pellucid.data.activations import HarvestConfig
from pellucid.data.document import DataConfig
from pellucid.dictionaries import DICTIONARIES, CoderConfig
from pellucid.train.optim import OptimConfig
from pellucid.train.schedule import ScheduleConfig

BASE_LR, BASE_LATENTS = 2e-4, 2**14  # the rate falls with the root of the number of latents
WARMUP_SHARE, WARMUP_STEPS = 0.05, 1000


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One dictionary of a run: its name, its two sites (equal for an SAE), its parts, its rate."""

    name: str
    reads: str
    writes: str
    coder: CoderConfig
    lr: float

    def __post_init__(self) -> None:
        Site.parse(self.reads)
        Site.parse(self.writes)
        if not self.lr > 0:
            raise ConfigError(f"{self.name}: lr: expected more than 0, found {self.lr}")
        plain = self.name.replace("-", "").replace("_", "").replace(".", "")
        if not plain.isalnum() or self.name.startswith("."):
            raise ConfigError(
                f"name: expected letters, digits, '-', '_' and '.', found {self.name!r}; it names "
                "a folder"
            )


@dataclass(frozen=True, kw_only=True)
class FitRun:
    """Everything that decides a run of fits, which all see the same rows in the same order.

    ``source`` is a folder of harvested activations, or a model whose activations are streamed as
    ``harvest`` and ``data`` say. ``evaluate_rows`` held-out rows are scored every
    ``evaluate_every`` steps, all of them at the end; ``splice_windows`` held-out windows measure
    what the model loses.
    """

    source: str
    fits: tuple[Fit, ...]
    harvest: HarvestConfig | None = None
    data: DataConfig | None = None
    steps: int = 1000
    batch: int = 4096
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    schedule: ScheduleConfig = ScheduleConfig(
        kind="wsd", warmup_share=WARMUP_SHARE, decay_share=0.2, final=0.0
    )
    settle_rows: int = 65_536
    evaluate_every: int = 250
    evaluate_rows: int = 8192
    splice_windows: int = 32
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        check_positive(
            self,
            "steps",
            "batch",
            "settle_rows",
            "evaluate_every",
            "evaluate_rows",
            "splice_windows",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        )
        if self.seed < 0:
            raise ConfigError(f"seed: expected at least 0, found {self.seed}")
        if not self.fits:
            raise ConfigError("fits: expected at least one dictionary; add --dictionary topk")
        names = [fit.name for fit in self.fits]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"fits: two dictionaries are named {name!r}; name one with "
                    f"--dictionary {name}:name=OTHER"
                )

    def optim(self, fit: Fit) -> OptimConfig:
        """Adam without decay at the fit's own rate."""
        return OptimConfig(lr=fit.lr, betas=self.betas, weight_decay=0.0, clip=self.clip)

    def streamed(self, data: DataConfig, *, context: int) -> "FitRun":
        """The same from a model that runs over ``data`` while its activations are used."""
        harvest = HarvestConfig(
            sites=tuple(str(site) for site in self.sites),
            tokens=self.steps * self.batch,
            context=context,
            seed=self.seed,
        )
        return replace(self, data=data, harvest=harvest)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that a fit reads or writes, once."""
        named = [name for fit in self.fits for name in (fit.reads, fit.writes)]
        return tuple(dict.fromkeys(Site.parse(name) for name in named))


def choose_dictionary(text: str, *, latents: int, k: int) -> tuple[str, CoderConfig]:
    """``NAME[:field=value,...]`` as a name and a config of ``latents`` latents and k.

    Fields are dotted (``gate.k=64``); ``name=`` gives the dictionary another name. Errors: a
    ``ConfigError`` with the nearest dictionary or field.
    """
    name, _, changes = text.partition(":")
    if name not in DICTIONARIES:
        raise ConfigError(f"dictionary {name!r}: {nearest(name, DICTIONARIES)}")
    # Sizes are set as plain values, since a config that is half changed may not be valid.
    config = to_dict(DICTIONARIES[name])
    config["latents"] = latents
    config["gate"] |= {key: k for key in ("k", "l0") if key in config["gate"]}
    label = name
    for change in filter(None, changes.split(",")):
        field, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"dictionary {text!r}: expected field=value, found {change!r}")
        if field == "name":
            label = value
            continue
        _set(config, field, _value(value), text)
    return label, from_dict(CoderConfig, config, where=f"dictionary {text!r}")


def plan_fits(
    chosen: Sequence[tuple[str, CoderConfig, str, str]], *, steps: int, batch: int
) -> tuple[Fit, ...]:
    """Fits from (name, config, reads, writes), with the plan and the usual rate filled in."""
    return tuple(
        Fit(
            name=name,
            reads=reads,
            writes=writes,
            coder=replace(config, plan=steps, batch=batch),
            lr=BASE_LR * (BASE_LATENTS / config.latents) ** 0.5,
        )
        for name, config, reads, writes in chosen
    )


def warm(schedule: ScheduleConfig, steps: int) -> ScheduleConfig:
    """The schedule with a warm-up of at most ``WARMUP_STEPS``."""
    return replace(schedule, warmup_share=min(schedule.warmup_share, WARMUP_STEPS / steps))


def _set(config: dict[str, Any], field: str, value: Any, text: str) -> None:
    *path, last = field.split(".")
    for part in path:
        inner = config.get(part)
        if not isinstance(inner, dict):
            raise ConfigError(f"dictionary {text!r}: no field {field}; {nearest(part, config)}")
        config = inner
    if last not in config:
        raise ConfigError(f"dictionary {text!r}: no field {field}; {nearest(last, config)}")
    config[last] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
