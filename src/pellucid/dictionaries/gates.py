"""The gates that decide which latents survive, as small modules over any rows.

    π = W z + b
    ReLU         f = relu(π)                               penalty λ Σ f_j ‖D_j‖
    TopK         the k largest relu(π) | π | |π| of a row
    BatchTopK    training: the B·k largest relu(π) of the batch;  inference: π · [π > θ]
    Groupmax     the winner of each of k contiguous blocks of latents

A gate returns ``Latents``; those that keep few of many find them without a gradient and compute the
survivors' pre-activations again with one, so that no [B, n] is kept. Sources: Gao et al.,
arXiv 2406.04093 (TopK); Bussmann et al., arXiv 2412.06410 (BatchTopK); AbsTopK, arXiv 2510.00404;
groupmax: eai-sparsify. JumpReLU and Gated are in ``thresholds.py``, pursuits in ``pursuit.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.config import check_positive
from pellucid.core.errors import ConfigError
from pellucid.dictionaries.latents import Latents, Pass
from pellucid.ops.rows import AtomRows
from pellucid.ops.select import batch_topk

THRESHOLD_DECAY = 0.999
MULTI = 4  # the wider of the two budgets of multi-TopK, in k
MULTI_WEIGHT = 1 / 8


@dataclass(frozen=True, kw_only=True)
class ReLUConfig:
    """All positive latents; ``l1`` is λ, ``plain`` leaves the decoder norm out of the penalty."""

    kind: Literal["relu"] = "relu"
    l1: float = 0.05
    plain: bool = False
    warmup: float = 0.05

    def __post_init__(self) -> None:
        check_penalty("l1", self.l1, self.warmup)


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """k latents a row, ranked and kept by ``sign``: relu(π), signed π, or abs(π).

    ``multi`` adds an eighth of the loss at 4k; ``start_k`` anneals from a larger k over the first
    ``anneal`` share of the plan.
    """

    kind: Literal["topk"] = "topk"
    k: int = 32
    sign: Literal["relu", "signed", "abs"] = "relu"
    multi: bool = False
    start_k: int | None = None
    anneal: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "k")
        check_share("anneal", self.anneal)
        if self.start_k is not None and self.start_k < self.k:
            raise ConfigError(
                f"start_k: expected at least k = {self.k}, found {self.start_k}; raise it"
            )


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig:
    """k latents a row on average; θ follows the batch from step ``threshold_from`` on."""

    kind: Literal["batchtopk"] = "batchtopk"
    k: int = 32
    threshold_from: int = 1000

    def __post_init__(self) -> None:
        check_positive(self, "k")


@dataclass(frozen=True, kw_only=True)
class GroupmaxConfig:
    """One latent from each of k contiguous blocks."""

    kind: Literal["groupmax"] = "groupmax"
    k: int = 32

    def __post_init__(self) -> None:
        check_positive(self, "k")


class Gate(nn.Module, ABC):
    """Chooses latents.

    A latent's act is exp(log_scale) · ⟨row, z⟩ + ``bias``, whichever of the two there is, or 1
    where ``solves`` says that values are coefficients.
    """

    solves = False

    def __init__(self, num: int, *, biased: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num)) if biased else None
        self.log_scale: nn.Parameter | None = None

    @abstractmethod
    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        """The latents of B rows: as training has them, or each row's by that row alone."""

    @abstractmethod
    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        """Weighted loss parts beside the reconstruction; ``share`` of the plan is done."""

    @abstractmethod
    def after_step(self, step: int, share: float) -> None:
        """Projections and schedules, when ``step`` steps, a ``share`` of the plan, are done."""


class ReLUGate(Gate):
    """relu(π), trained towards sparsity by an L1 on what latents contribute."""

    def __init__(self, config: ReLUConfig, num: int) -> None:
        super().__init__(num)
        self.config = config

    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        pre = all_pre(rows, z, self.bias)
        return Latents(unit=None, gate=(pre > 0).to(pre.dtype), act=pre, value=F.relu(pre), pre=pre)

    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        value = seen.latents.value
        if not self.config.plain:
            value = value * seen.writes.norms()
        weight = self.config.l1 * warm(share, self.config.warmup)
        return {"l1": weight * value.sum(-1).mean()}

    def after_step(self, step: int, share: float) -> None:
        """Nothing changes."""


class TopKGate(Gate):
    """The k largest of each row; ``budget`` is an annealed k, which a resumed run goes on from."""

    budget: Tensor | None

    def __init__(self, config: TopKConfig, num: int) -> None:
        super().__init__(num)
        check_count("k", config.k, num)
        check_count("start_k", config.start_k or config.k, num)
        self.config = config
        self.register_buffer("budget", torch.tensor(config.start_k) if config.start_k else None)

    @property
    def k(self) -> int:
        """Latents kept per row in training."""
        return self.config.k if self.budget is None else int(self.budget)

    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        return self.keep(rows, z, self.k if fit else self.config.k)

    def keep(self, rows: AtomRows, z: Float[Tensor, "B d"], k: int) -> Latents:
        """The code with another budget."""
        unit = rows.top(z, self.bias, min(k, rows.num), self.config.sign)
        pre = some_pre(rows, z, self.bias, unit)
        on = pre > 0 if self.config.sign == "relu" else pre != 0
        gate = on.to(pre.dtype)
        return Latents(unit=unit, gate=gate, act=pre, value=gate * pre)

    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        if not self.config.multi:
            return {}
        wide = self.keep(seen.reads, seen.z, MULTI * self.k)
        return {"multi": MULTI_WEIGHT * seen.error(wide.decode(seen.writes))}

    def after_step(self, step: int, share: float) -> None:
        config = self.config
        if config.start_k is None or self.budget is None:
            return
        left = max(0.0, 1 - share / config.anneal) if config.anneal else 0.0
        self.budget.fill_(config.k + round((config.start_k - config.k) * left))


class BatchTopKGate(Gate):
    """The B·k largest of the batch while training, a global threshold afterwards."""

    threshold: Tensor

    def __init__(self, config: BatchTopKConfig, num: int, *, plan: int | None) -> None:
        super().__init__(num)
        check_count("k", config.k, num)
        self.config = config
        # A short run would end before θ has been measured once.
        first = config.threshold_from
        self._from = first if plan is None else min(first, plan // 10)
        self.register_buffer("threshold", torch.tensor(-1.0))
        self.register_buffer("smallest", torch.tensor(0.0), persistent=False)

    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        if not fit:
            pre = all_pre(rows, z, self.bias)
            gate = (pre > self.threshold.clamp_min(0)).to(pre.dtype)
            return Latents(unit=None, gate=gate, act=pre, value=gate * pre, pre=pre)
        with torch.no_grad():
            strength = F.relu(all_pre(rows, z, self.bias))
            unit, kept = batch_topk(strength, self.config.k)
            gate = kept.to(strength.dtype)
            chosen = strength.gather(-1, unit)[kept]
            self.smallest = chosen.min() if chosen.numel() else strength.new_zeros(())
        pre = some_pre(rows, z, self.bias, unit)
        return Latents(unit=unit, gate=gate, act=pre, value=gate * pre)

    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        return {}

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        # 0 says that nothing was positive, so that nothing was kept.
        if step < self._from or self.smallest == 0:
            return
        if self.threshold < 0:
            self.threshold.copy_(self.smallest)
        else:
            self.threshold.lerp_(self.smallest, 1 - THRESHOLD_DECAY)


class GroupmaxGate(Gate):
    """The strongest latent of each of k equal blocks, if it is positive."""

    def __init__(self, config: GroupmaxConfig, num: int) -> None:
        super().__init__(num)
        if num % config.k:
            raise ConfigError(
                f"gate.k: expected a divisor of latents = {num}, found {config.k}; blocks of "
                "latents are equal"
            )
        self.config = config

    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        k, size = self.config.k, rows.num // self.config.k
        with torch.no_grad():
            winner = all_pre(rows, z, self.bias).view(-1, k, size).argmax(-1)
            unit = winner + torch.arange(0, rows.num, size, device=z.device)
        pre = some_pre(rows, z, self.bias, unit)
        gate = (pre > 0).to(pre.dtype)
        return Latents(unit=unit, gate=gate, act=pre, value=gate * pre)

    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        return {}

    def after_step(self, step: int, share: float) -> None:
        """Nothing changes."""


def all_pre(
    rows: AtomRows, z: Float[Tensor, "B d"], bias: Float[Tensor, " n"] | None
) -> Float[Tensor, "B n"]:
    """π of every latent."""
    pre = rows.all(z)
    return pre if bias is None else pre + bias


def some_pre(
    rows: AtomRows,
    z: Float[Tensor, "B d"],
    bias: Float[Tensor, " n"] | None,
    unit: Int[Tensor, "B K"],
) -> Float[Tensor, "B K"]:
    """π of the named latents of each row."""
    pre = rows.some(z, unit)
    return pre if bias is None else pre + bias[unit]


def warm(share: float, over: float) -> float:
    """The factor of a weight that grows linearly over the first ``over`` of the plan."""
    return min(1.0, share / over) if over else 1.0


def check_penalty(name: str, weight: float, warmup: float) -> None:
    """A penalty's weight is at least 0 and its warm-up a share."""
    if not weight >= 0:
        raise ConfigError(f"{name}: expected at least 0, found {weight}")
    check_share("warmup", warmup)


def check_share(name: str, share: float) -> None:
    """A part of the plan, from 0 to 1."""
    if not 0 <= share <= 1:
        raise ConfigError(f"{name}: expected a share from 0 to 1, found {share}")


def check_count(name: str, count: int, num: int) -> None:
    """No more latents are kept than there are."""
    if count > num:
        raise ConfigError(
            f"gate.{name}: expected at most latents = {num}, found {count}; lower {name} or raise "
            "latents"
        )
