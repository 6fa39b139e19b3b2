"""Learning rate as a pure function of the step and the planned number of steps.

    warm-up    (s + 1) / w                                       for s < w
    cosine     f + (1 − f) · (1 + cos(π · t)) / 2                t = (s − w) / (n − w)
    wsd        1 until the last ``decay_share`` of the steps, then linearly to f

Cosine: Loshchilov and Hutter, "SGDR", arXiv 1608.03983. Warm-up, stable, decay: Hu et al.,
"MiniCPM", arXiv 2404.06395.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pellucid.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Shares are of all planned steps; ``final`` is the last factor."""

    kind: Literal["cosine", "wsd"] = "cosine"
    warmup_share: float = 0.02
    decay_share: float = 0.2
    final: float = 0.1

    def __post_init__(self) -> None:
        for name in ("warmup_share", "decay_share", "final"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}: expected a share from 0 to 1, found {value}")


def lr_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The factor on the base rate at ``step`` (from 0) of a plan of ``steps``."""
    warmup = max(1, round(config.warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.kind == "cosine":
        t = min(1.0, (step - warmup) / max(1, steps - warmup))
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * t)) / 2
    decay = max(1, round(config.decay_share * steps))
    left = min(1.0, (steps - step) / decay)
    return config.final + (1 - config.final) * left
