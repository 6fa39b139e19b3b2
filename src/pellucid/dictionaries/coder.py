"""One class for every dictionary: encoder, gate, decoder and skip around two sites.

    z = c·x − b_dec                 (a transcoder: z = c·x)
    f = gate(W z + b)               the latents that survive
    c'·ŷ = Σ_j f_j D_j + b_dec + Skip(c·x)

c and c' scale inputs and targets to mean squared norm d and are measured once. Reads and writes
that leave ``UnitPool`` members have them folded in, so they act on raw activations. Sources: the
gates' and routers' own; Dunefsky et al., "Transcoders find interpretable LLM feature circuits",
arXiv 2406.11944; Paulo et al., "Transcoders beat sparse autoencoders", arXiv 2501.18823 (skip).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid.core.code import check_exclusive, named_gates, take_largest
from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code, PoolSpec, Site
from pellucid.dictionaries.atoms import (
    Atoms,
    DenseAtoms,
    DenseAtomsConfig,
    ExpanderAtoms,
    ExpanderAtomsConfig,
    draw_mask,
)
from pellucid.dictionaries.config import CoderConfig, GateConfig
from pellucid.dictionaries.gates import (
    BatchTopKConfig,
    BatchTopKGate,
    Gate,
    GroupmaxConfig,
    GroupmaxGate,
    ReLUConfig,
    ReLUGate,
    TopKConfig,
    TopKGate,
)
from pellucid.dictionaries.latents import Latents, Pass
from pellucid.dictionaries.losses import auxiliary, reconstruction
from pellucid.dictionaries.pursuit import PursuitConfig, PursuitGate, on_support, solve
from pellucid.dictionaries.router import ExpertReads, Routed, Router
from pellucid.dictionaries.thresholds import GatedConfig, GatedGate, JumpReLUConfig, JumpReLUGate
from pellucid.ops.rows import AtomRows

DEAD_ROWS = 10_000_000  # a latent is dead after this many rows, or a tenth of the plan


class Coder(nn.Module):
    """An SAE, or a transcoder where ``writes`` is another site than ``reads``."""

    in_scale: Tensor
    out_scale: Tensor
    variance: Tensor
    silent: Tensor
    fires: Tensor
    steps: Tensor

    def __init__(self, config: CoderConfig, spec: PoolSpec, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self._spec = spec
        self.is_sae = spec.reads == spec.writes
        n, d_in, d_out = config.latents, spec.d_in, spec.d_out
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.decoder, self.encoder = _atoms(config, spec)
            self.gate = _gate(config.gate, n, config)
            self.router = Router(config.router, n, d_in) if config.router else None
        if config.router is not None and not config.router.bias:
            self.gate.bias = None
        self.skip = nn.Parameter(torch.zeros(d_out, d_in)) if config.skip else None
        self.bias = nn.Parameter(torch.zeros(d_out))
        for name in ("in_scale", "out_scale", "variance"):
            self.register_buffer(name, torch.ones(()))
        for name in ("silent", "fires"):
            self.register_buffer(name, torch.zeros(n, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def spec(self) -> PoolSpec:
        return self._spec

    @property
    def is_signed(self) -> bool:
        """Whether a latent may speak with either sign."""
        gate = self.config.gate
        solved = self.config.inference != "encoder"
        return solved or (isinstance(gate, TopKConfig) and gate.sign != "relu")

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        """Parameters with one row per latent that re-aiming rewrites."""
        tables = [self.decoder.table()]
        if self.encoder is not None:
            tables.append(self.encoder.table())
        if self.gate.bias is not None:
            tables.append(self.gate.bias)
        return tuple(tables)

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d_in"]:
        if self.router is not None:
            rows = self._expert_reads(self.router).gather(unit)
        else:
            rows = self._reads().gather(unit)
        if self.gate.log_scale is not None:
            rows = rows * self.gate.log_scale.exp()[unit].unsqueeze(-1)
        return self.in_scale * rows

    def write(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d_out"]:
        return self.decoder.rows().gather(unit) / self.out_scale

    def activate(
        self,
        x: Float[Tensor, "*batch d_in"],
        *,
        unit: Int[Tensor, " k"] | None = None,
        limit: int | None = None,
    ) -> Code:
        check_exclusive(unit, limit)
        rows = x.reshape(-1, x.shape[-1]).to(self.bias.dtype)
        z, scaled = self._center(rows)
        code = self._infer(z, scaled).code()
        if unit is not None:
            gate = named_gates(code, unit, self.config.latents)
            code = Code(unit.expand(gate.shape), gate, self._acts(z, unit.expand(gate.shape)))
        elif limit is not None:
            code = take_largest(code, self.decoder.rows().norms()[code.unit], limit)
        lead = (*x.shape[:-1], code.unit.shape[-1])
        return Code(code.unit.view(lead), code.gate.view(lead), code.act.view(lead))

    def decode(self, code: Code) -> Float[Tensor, "*batch d_out"]:
        rows, entries = code.unit.shape[:-1].numel(), code.unit.shape[-1]
        value = code.value.reshape(rows, entries).to(self.bias.dtype)
        written = self.decoder.rows().decode(code.unit.reshape(rows, entries), value)
        return (written / self.out_scale).view(*code.unit.shape[:-1], self._spec.d_out)

    def rest(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return self._base(self.in_scale * x.to(self.bias.dtype)) / self.out_scale

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        rows = x.reshape(-1, x.shape[-1]).to(self.bias.dtype)
        z, scaled = self._center(rows)
        written = self._infer(z, scaled).decode(self.decoder.rows())
        whole = (written + self._base(scaled)) / self.out_scale
        return whole.view(*x.shape[:-1], self._spec.d_out)

    def losses(
        self, x: Float[Tensor, "B d_in"], y: Float[Tensor, "B d_out"]
    ) -> Mapping[str, Float[Tensor, ""]]:
        """The weighted loss parts of raw rows x and targets y; counts which latents fired."""
        z, scaled = self._center(x)
        reads, bias = self._reads(), self.gate.bias
        routed, experts = None, None
        if self.router is not None:
            routed, experts = self.router(scaled), self._expert_reads(self.router)
            latents = self._route(self.router, experts, z, routed)
        else:
            latents = self.gate(reads, z, fit=True)
        seen = Pass(
            z=z,
            target=self.out_scale * y,
            base=self._base(scaled),
            reads=reads,
            writes=self.decoder.rows(),
            latents=latents,
            variance=self.variance,
        )
        written = latents.decode(seen.writes)
        parts = reconstruction(seen, written, self.config.prefixes)
        parts |= self.gate.parts(seen, self._share)
        if self.router is not None and routed is not None:
            parts |= self.router.parts(routed)
        if self.config.auxk:
            detached = scaled - self.bias.detach() if self.is_sae else scaled
            dead = self.dead().nonzero().squeeze(1)
            parts |= auxiliary(
                seen,
                written,
                self.config,
                dead,
                z=detached,
                bias=bias,
                experts=experts,
                routed=routed,
            )
        self._count(latents)
        return parts

    def before_step(self) -> None:
        """Gradients are final: keep them within the decoder's constraint."""
        self.decoder.before_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore constraints, move thresholds and schedules."""
        self.steps += 1
        self.decoder.after_step()
        self.gate.after_step(int(self.steps), self._share)

    def dead(self) -> Bool[Tensor, " n"]:
        """Which latents have been silent for the whole dead window."""
        return self.silent >= self._dead_after

    @property
    def _share(self) -> float:
        return min(1.0, int(self.steps) / self.config.plan) if self.config.plan else 1.0

    @property
    def _dead_after(self) -> int:
        plan = self.config.plan
        return min(DEAD_ROWS, -(-plan * self.config.batch // 10)) if plan else DEAD_ROWS

    def _center(self, x: Float[Tensor, "B d_in"]) -> tuple[Tensor, Tensor]:
        """z, and the scaled input."""
        scaled = self.in_scale * x
        return (scaled - self.bias if self.is_sae else scaled), scaled

    def _base(self, scaled: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        if self.skip is not None:
            return F.linear(scaled, self.skip, self.bias)
        return self.bias.expand(*scaled.shape[:-1], -1)

    def _reads(self) -> AtomRows:
        return (self.decoder if self.encoder is None else self.encoder).rows()

    def _expert_reads(self, router: Router) -> ExpertReads:
        return router.reads(self._reads())

    def _route(
        self, router: Router, reads: ExpertReads, z: Float[Tensor, "B d_in"], routed: Routed
    ) -> Latents:
        assert self.config.k is not None
        return router.keep(reads, self.gate.bias, z, routed, self.config.k)

    def _infer(self, z: Float[Tensor, "B d_in"], scaled: Float[Tensor, "B d_in"]) -> Latents:
        config = self.config
        if self.router is not None:
            reads = self._expert_reads(self.router)
            return self._route(self.router, reads, z, self.router(scaled))
        if config.inference == "encoder":
            return self.gate(self._reads(), z, fit=False)
        if config.inference == "refit":
            code = self.gate(self._reads(), z, fit=False).code()
            return on_support(code, self.decoder.rows(), z)
        assert config.k is not None
        return solve(
            self.decoder.rows(),
            z,
            config.inference,
            k=config.k,
            sign=config.solver_sign,
            per_iteration=config.solver_width,
        )

    def _acts(self, z: Float[Tensor, "B d_in"], unit: Int[Tensor, "B k"]) -> Float[Tensor, "B k"]:
        if self.gate.solves or self.config.inference != "encoder":
            return z.new_ones(unit.shape)
        if self.router is not None:
            return F.relu(self._expert_reads(self.router).some(z, unit, self.gate.bias))
        act = self._reads().some(z, unit)
        if self.gate.log_scale is not None:
            act = act * self.gate.log_scale.exp()[unit]
        return act if self.gate.bias is None else act + self.gate.bias[unit]

    @torch.no_grad()
    def _count(self, latents: Latents) -> None:
        fired = latents.fired(self.config.latents)
        rows = latents.value.shape[0]
        self.silent = torch.where(fired > 0, 0, self.silent + rows)
        self.fires += fired


def build_coder(
    config: CoderConfig,
    *,
    name: str,
    reads: Site,
    writes: Site,
    d_in: int,
    d_out: int,
    seed: int = 0,
) -> Coder:
    """The dictionary on two sites, its weights drawn by ``seed``."""
    if reads == writes and d_in != d_out:
        raise ConfigError(f"{reads}: one site has one width, found {d_in} and {d_out}")
    groups = config.router.experts if config.router else 1
    axes = (("expert", groups), ("latent", config.latents // groups))
    spec = PoolSpec(
        name=name,
        reads=reads,
        writes=writes,
        axes=axes if groups > 1 else (("latent", config.latents),),
        d_in=d_in,
        d_out=d_out,
    )
    return Coder(config, spec, seed=seed)


def _atoms(config: CoderConfig, spec: PoolSpec) -> tuple[Atoms, Atoms | None]:
    """Decoder rows, and encoder rows unless they are the same."""
    n, d_in, d_out, atoms = config.latents, spec.d_in, spec.d_out, config.atoms
    sae = spec.reads == spec.writes
    if not sae:
        _check_transcoder(config)
    if isinstance(atoms, ExpanderAtomsConfig):
        if atoms.share_support and d_in != d_out:
            raise ConfigError(
                f"atoms.share_support: expected equal widths, found {d_in} and {d_out}"
            )
        mask = draw_mask(atoms, n, d_out)
        decoder = ExpanderAtoms(mask, d_out, stored=atoms.stored, gain=not sae)
        if sae:
            return decoder, None
        if not atoms.share_support:
            mask = draw_mask(atoms, n, d_in, salt=1)
        return decoder, ExpanderAtoms(mask, d_in, stored=atoms.stored)
    groups = config.router.experts if config.router else 1
    if not sae:
        encoder = DenseAtoms(torch.randn(n, d_in), "unit", 1)
        return DenseAtoms(torch.zeros(n, d_out), "free", groups), encoder
    rows = F.normalize(torch.randn(n, d_out))
    encoder = None if atoms.tied else DenseAtoms(rows.clone(), "free", 1)
    return DenseAtoms(rows, atoms.norm, groups), encoder


def _check_transcoder(config: CoderConfig) -> None:
    if isinstance(config.gate, PursuitConfig):
        raise ConfigError("gate: a pursuit reads along its own decoder; fit an SAE, not transcoder")
    if config.inference != "encoder":
        raise ConfigError(
            f"inference: expected encoder for a transcoder, found {config.inference}; solvers "
            "reconstruct what they read"
        )
    if isinstance(config.atoms, DenseAtomsConfig) and config.atoms.tied:
        raise ConfigError(
            "atoms.tied: expected false for a transcoder, found true; its rows act on two sites"
        )


def _gate(config: GateConfig, num: int, coder: CoderConfig) -> Gate:
    match config:
        case ReLUConfig():
            return ReLUGate(config, num)
        case GatedConfig():
            return GatedGate(config, num)
        case TopKConfig():
            return TopKGate(config, num)
        case BatchTopKConfig():
            return BatchTopKGate(config, num, plan=coder.plan)
        case JumpReLUConfig():
            return JumpReLUGate(config, num)
        case GroupmaxConfig():
            return GroupmaxGate(config, num)
        case PursuitConfig():
            return PursuitGate(config, num)
