"""The only training loop: sum the parts, backward, clip, step, tell the callbacks.

Everything a step depends on is a function of the step number and of what a checkpoint holds, so a
run that is killed and resumed repeats itself bit by bit on one machine.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from pellucid.core.errors import TrainingError
from pellucid.train.objective import Objective
from pellucid.train.optim import OptimConfig, set_lr
from pellucid.train.schedule import ScheduleConfig, lr_factor

Batch = TypeVar("Batch")
Precision = Literal["fp32", "bf16"]


@dataclass
class Progress:
    """Where a run stands after a step; callbacks add their figures to ``metrics``."""

    step: int
    steps: int
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)
    stopping: bool = False

    @property
    def last(self) -> bool:
        """Whether no further step will follow."""
        return self.stopping or self.step >= self.steps


class Callback(ABC):
    """Something that looks at a run after every step, in the order given to the loop."""

    @abstractmethod
    def after_step(self, progress: Progress) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Loop(Generic[Batch]):
    """One run. ``batches(step)`` gives a step's micro-batches, ``name_batch`` their documents."""

    objective: Objective[Batch]
    optimizer: torch.optim.Optimizer
    batches: Callable[[int], Sequence[Batch]]
    name_batch: Callable[[Batch], str]
    tokens_per_step: int
    steps: int
    optim: OptimConfig
    schedule: ScheduleConfig
    precision: Precision = "fp32"
    device: str = "cpu"

    def run(
        self, start: int, callbacks: Sequence[Callback], stop: Callable[[], bool] = lambda: False
    ) -> Progress:
        """Train from step ``start`` until the plan ends or ``stop()`` says so."""
        progress = self.start(start)
        while not progress.last:
            progress = self.advance(progress, callbacks, stop)
        return progress

    def start(self, step: int) -> Progress:
        """Where a run stands that has done ``step`` steps."""
        return Progress(step=step, steps=self.steps, tokens=step * self.tokens_per_step)

    def advance(
        self,
        progress: Progress,
        callbacks: Sequence[Callback],
        stop: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """One step and its callbacks; runs that share their batches take turns in these."""
        began = time.perf_counter()
        metrics = self._step(progress.step)
        metrics["time/tokens_per_second"] = round(
            self.tokens_per_step / (time.perf_counter() - began), 1
        )
        progress = Progress(
            step=progress.step + 1,
            steps=self.steps,
            tokens=progress.tokens + self.tokens_per_step,
            metrics=metrics,
            stopping=stop(),
        )
        for callback in callbacks:
            callback.after_step(progress)
        return progress

    def _step(self, step: int) -> dict[str, float]:
        lr = self.optim.lr * lr_factor(self.schedule, step, self.steps)
        set_lr(self.optimizer, lr)
        batches = self.batches(step)
        totals: dict[str, float] = {}
        for batch in batches:
            for name, value in self._backward(step, batch, 1 / len(batches)).items():
                totals[name] = totals.get(name, 0.0) + value
        norm = self._clip(step, batches)
        self.objective.before_step(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(step)
        parts = {f"train/{name}": value for name, value in totals.items()}
        return {"train/loss": sum(totals.values()), **parts, "lr": lr, "grad_norm": norm}

    def _backward(self, step: int, batch: Batch, weight: float) -> dict[str, float]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            parts = {n: part * weight for n, part in self.objective.losses(batch).items()}
        values = {name: float(part.detach()) for name, part in parts.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"step {step + 1}: loss part {name!r} is {value}; the batch held "
                    f"{self.name_batch(batch)}; lower optim.lr or look at these documents"
                )
        torch.stack(list(parts.values())).sum().backward()
        return values

    def _clip(self, step: int, batches: Sequence[Batch]) -> float:
        groups = self.optimizer.param_groups
        params: list[Tensor] = [p for group in groups for p in group["params"]]
        total = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        norm = float(total)
        if math.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(params, self.optim.clip, total)
            return norm
        culprits = [
            group["name"]
            for group in groups
            for p in group["params"]
            if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        # Finite gradients may still be too large for their norm.
        which = f"gradient of the {culprits[0]}" if culprits else "norm of the gradient"
        documents = "; ".join(self.name_batch(batch) for batch in batches)
        raise TrainingError(
            f"step {step + 1}: the {which} is not finite; the batch held {documents}; "
            "lower optim.lr or look at these documents"
        )
