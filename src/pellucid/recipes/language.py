"""Complete run configs for language models, by name: ``pools-tiny``, ``dense-small``, …"""

from dataclasses import dataclass, replace
from typing import Literal

from pellucid.core.errors import ConfigError, nearest
from pellucid.data.corpus import DataConfig
from pellucid.models.config import TransformerConfig
from pellucid.models.presets import ARCHITECTURES, PRESETS, preset
from pellucid.train.language import check_distillation
from pellucid.train.optim import OptimConfig
from pellucid.train.schedule import ScheduleConfig
from pellucid.train.track import Tracker

LARGEST_SEED = 2**63 - 1  # what every generator takes


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """Distil from ``teacher``, a run folder or a Hugging Face model; none by default."""

    teacher: str | None = None
    alpha: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_distillation(self.alpha, self.temperature)


@dataclass(frozen=True, kw_only=True)
class LanguageRun:
    """Everything that decides a language model's run; the run folder keeps it as ``run.json``.

    A step sees ``accumulate`` micro-batches of ``batch`` sequences of the model's context.
    ``evaluate_tokens`` is the budget per domain, in whole documents.
    """

    model: TransformerConfig
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    distil: DistilConfig = DistilConfig()
    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    device: str = "auto"
    evaluate_every: int = 100
    evaluate_tokens: int = 2048
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    log_every: int = 10
    track: Tracker | None = None

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch",
            "accumulate",
            "evaluate_every",
            "evaluate_tokens",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ConfigError(f"seed: expected 0 to {LARGEST_SEED}, found {self.seed}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.accumulate * self.model.context


# steps, sequences per micro-batch, micro-batches, learning rate; "demo" belongs to `pellucid demo`
_PLANS = {
    "demo": (960, 8, 1, 3e-3),
    "tiny": (2_000, 4, 1, 3e-3),
    "small": (4_000, 8, 4, 2e-3),
    "base": (20_000, 8, 16, 1e-3),
    "large": (40_000, 4, 64, 6e-4),
    "1b": (100_000, 2, 128, 3e-4),
    "8b": (200_000, 1, 256, 2e-4),
}


def recipe_names() -> list[str]:
    """Every recipe: architecture and size."""
    return [f"{architecture}-{size}" for size in PRESETS for architecture in ARCHITECTURES]


def recipe(name: str) -> LanguageRun:
    """The run that a recipe names; an unknown name is a ``ConfigError`` with the nearest one."""
    names = recipe_names()
    if name not in names:
        raise ConfigError(f"recipe {name!r}: {nearest(name, names)}")
    architecture, _, size = name.rpartition("-")
    steps, batch, accumulate, lr = _PLANS[size]
    run = LanguageRun(model=preset(architecture, size))
    return replace(
        run,
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        optim=replace(run.optim, lr=lr),
    )
