"""What a dictionary is made of: rows, gate, router, skip, and the parts of its loss."""

from dataclasses import dataclass, replace
from typing import Literal

from pellucid.core.config import check_at_least_zero, check_positive
from pellucid.core.errors import ConfigError
from pellucid.dictionaries.atoms import AtomsConfig, DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, GroupmaxConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import Inference, PursuitConfig
from pellucid.dictionaries.router import RouterConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig

GateConfig = (
    ReLUConfig
    | GatedConfig
    | TopKConfig
    | BatchTopKConfig
    | JumpReLUConfig
    | GroupmaxConfig
    | PursuitConfig
)


@dataclass(frozen=True, kw_only=True)
class CoderConfig:
    """A dictionary of ``latents`` latents: an SAE where it writes what it reads, else a transcoder.

    ``skip`` adds a linear path from input to output. ``auxk`` weighs the loss by which dead latents
    learn the error (``auxk_ramp`` scales it with their number); ``prefixes`` are the shares of
    latents whose reconstructions share the loss (Matryoshka). ``reaim`` turns rarely firing rows
    towards badly reconstructed inputs every so many steps, 0 never. ``reduction`` divides squared
    errors by the target's variance or leaves raw sums; ``normalise`` scales inputs to mean squared
    norm d; ``center`` is where an SAE's decoder bias starts. ``inference`` replaces the encoder by
    a solver in evaluation, whose atoms are picked by ``solver_sign``, ``solver_width`` at a time in
    gomp. ``plan`` and ``batch`` tell how many steps of how many rows are planned, for warm-ups and
    the dead window.
    """

    latents: int = 8192
    gate: GateConfig = TopKConfig()
    atoms: AtomsConfig = DenseAtomsConfig()
    router: RouterConfig | None = None
    skip: bool = False
    auxk: float = 1 / 32
    auxk_ramp: bool = False
    prefixes: tuple[float, ...] = ()
    reaim: int = 0
    reduction: Literal["variance", "sum"] = "variance"
    normalise: bool = True
    center: Literal["median", "zero"] = "median"
    inference: Inference = "encoder"
    solver_sign: Literal["signed", "abs"] = "signed"
    solver_width: int = 4
    plan: int | None = None
    batch: int = 4096

    def __post_init__(self) -> None:
        check_positive(self, "latents", "batch", "solver_width")
        check_at_least_zero(self, "auxk", "reaim")
        if self.plan is not None:
            check_positive(self, "plan")
        if self.prefixes and (sorted(self.prefixes)[-1] != 1 or min(self.prefixes) <= 0):
            raise ConfigError(
                f"prefixes: expected shares above 0 that end with 1, found {self.prefixes}"
            )
        if self.reaim and isinstance(self.gate, GatedConfig):
            raise ConfigError(
                f"reaim: expected 0 with gate gated, found {self.reaim}; its two paths are not "
                "turned together"
            )
        if self.router is not None:
            self._check_router()
        if isinstance(self.gate, PursuitConfig) and not self.tied:
            raise ConfigError("atoms.tied: expected true with a pursuit gate, found false; set it")
        norm = self.atoms.norm if isinstance(self.atoms, DenseAtomsConfig) else "unit"
        if isinstance(self.gate, PursuitConfig) and norm != "unit":
            raise ConfigError(
                f"atoms.norm: expected unit with a pursuit gate, found {norm}; its steps project "
                "on unit rows"
            )
        if self.auxk and not isinstance(self.gate, TopKConfig | BatchTopKConfig | GroupmaxConfig):
            raise ConfigError(
                f"auxk: expected 0 with gate {self.gate.kind}, found {self.auxk}; it ranks the "
                "dead latents of the TopK family"
            )
        if self.inference not in ("encoder", "refit") and self.k is None:
            raise ConfigError(
                f"inference: expected encoder or refit with gate {self.gate.kind}, found "
                f"{self.inference}; a solver needs the gate's k"
            )
        if self.inference != "encoder" and self.router is not None:
            raise ConfigError(
                f"inference: expected encoder with a router, found {self.inference}; solvers do "
                "not know of experts"
            )

    def _check_router(self) -> None:
        router, gate = self.router, self.gate
        assert router is not None
        if not isinstance(gate, TopKConfig) or gate.sign != "relu" or gate.multi:
            raise ConfigError(
                f"gate: expected topk of relu with a router, found {gate.kind}; experts compete by "
                "their positive activations"
            )
        if self.latents % router.experts:
            raise ConfigError(
                f"latents: expected a multiple of router.experts = {router.experts}, found "
                f"{self.latents}; change one of them"
            )
        readable = self.latents // router.experts * router.active
        if gate.k > readable:
            raise ConfigError(
                f"gate.k: expected at most the {readable} latents of the active experts, found "
                f"{gate.k}; lower k or activate more experts"
            )

    @property
    def tied(self) -> bool:
        """Whether the encoder of an SAE reads along the decoder's rows."""
        return isinstance(self.atoms, ExpanderAtomsConfig) or self.atoms.tied

    @property
    def k(self) -> int | None:
        """Latents kept per row, where the gate fixes it."""
        gate = self.gate
        fixed = isinstance(gate, TopKConfig | BatchTopKConfig | GroupmaxConfig | PursuitConfig)
        return gate.k if fixed else None

    def with_k(self, k: int) -> "CoderConfig":
        """The same at another k, or at L0* = k where the gate aims at an L0."""
        gate = self.gate
        if isinstance(gate, JumpReLUConfig):
            return replace(self, gate=replace(gate, l0=float(k)))
        if isinstance(gate, TopKConfig | BatchTopKConfig | GroupmaxConfig | PursuitConfig):
            return replace(self, gate=replace(gate, k=k))
        return self
