"""Which dictionaries each foreign format can hold exactly, and the nearest form of the others.

A dictionary's form is how it chooses latents (``relu``, ``signed TopK``, ``Scale``, ...), whether
it is a transcoder and whether it has a skip path. What a format cannot hold is refused with the
formats that can, unless the nearest form is asked for:

    a solver's code       its encoder's code
    TopK of one sign      TopK of another
    groupmax              TopK
    any TopK              JumpReLU with one θ, at which sampled rows have k latents on average

How near that is, is told as the share of sampled rows whose set of active latents changed. Routed
dictionaries and pursuits have no near form: without their experts or steps they are other codes.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pellucid.core.errors import InteropError
from pellucid.dictionaries import Coder
from pellucid.dictionaries.config import GateConfig
from pellucid.dictionaries.gates import TopKConfig
from pellucid.dictionaries.thresholds import JumpReLUConfig, JumpReLUGate
from pellucid.interop.converter import WriteOptions
from pellucid.interop.weights import coder_of, weights_of
from pellucid.ops.topk_encode import Sign

SIGNS: dict[Sign, str] = {"relu": "TopK", "signed": "signed TopK", "abs": "AbsTopK"}
NAMES = {
    "relu": "ReLU",
    "gated": "gated",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "groupmax": "groupmax",
    "pursuit": "matching pursuit",
}
SOLVERS = {"refit": "refit", "oneshot": "one-shot", "gomp": "gOMP", "omp": "OMP"}
SAMPLE_ROWS = 512
SAMPLE_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """What one format holds: forms of SAEs, of transcoders, and where skips may be.

    ``clips`` says that its JumpReLU passes nothing negative, whatever θ.
    """

    saes: tuple[str, ...] = ()
    transcoders: tuple[str, ...] = ()
    sae_skips: bool = False
    equal_widths: bool = False
    clips: bool = False


HOLDS: dict[str, Holds] = {
    "saelens": Holds(
        saes=("ReLU", "TopK", "AbsTopK", "JumpReLU", "BatchTopK", "gated", "matching pursuit"),
        transcoders=("ReLU", "JumpReLU", "BatchTopK"),
        clips=True,
    ),
    "sparsify": Holds(
        saes=("TopK", "groupmax"),
        transcoders=("TopK", "groupmax"),
        sae_skips=True,
        equal_widths=True,
    ),
    "dictionary_learning": Holds(
        saes=("ReLU", "gated", "JumpReLU", "TopK", "BatchTopK"), clips=True
    ),
    "circuit_tracer": Holds(
        transcoders=("ReLU", "JumpReLU", "BatchTopK", "signed TopK"), equal_widths=True
    ),
}


def form_of(coder: Coder) -> str:
    """How the dictionary chooses its latents."""
    config = coder.config
    if config.router is not None:
        return "Switch" if config.router.lowpass == "none" else "Scale"
    return SOLVERS.get(config.inference) or _gate_form(config.gate)


def fault(coder: Coder, format: str, form: str | None = None) -> str | None:
    """Why ``format`` cannot hold the dictionary, or what it would be in another ``form``.

    Field, expected and found; None where it can.
    """
    holds, form, spec = HOLDS[format], form or form_of(coder), coder.spec
    forms = holds.saes if coder.is_sae else holds.transcoders
    what = "an SAE" if coder.is_sae else "a transcoder"
    if not forms:
        return f"sites: expected {'two' if coder.is_sae else 'one'}, found those of {what}"
    if form not in forms:
        return f"gate: expected {', '.join(forms)} in {what}, found {form}"
    if coder.is_sae and coder.skip is not None and not holds.sae_skips:
        return "skip: expected none in an SAE, found one"
    if holds.equal_widths and spec.d_in != spec.d_out:
        return f"widths: expected equal ones, found {spec.d_in} and {spec.d_out}"
    if holds.clips and form == form_of(coder) == "JumpReLU":
        assert isinstance(coder.gate, JumpReLUGate)
        least = float(coder.gate.threshold.detach().min())
        return f"threshold: expected at least 0, found {least:.4g}" if least < 0 else None
    return None


def held(coder: Coder, format: str, options: WriteOptions) -> tuple[Coder, tuple[str, ...]]:
    """The dictionary, or if ``lossy`` its nearest form that ``format`` holds, and what to tell.

    Errors: an ``InteropError`` where the format cannot hold it.
    """
    if options.own_class:
        raise InteropError(f"{format}: --own-class is SAELens' alone; leave it out")
    found, sample = fault(coder, format), options.sample
    if found is None:
        return coder, ()
    form = nearest(coder, format)
    if form is None or not options.lossy:
        ways = [name for name in HOLDS if name != format and fault(coder, name) is None]
        ways += ["--lossy for the nearest form"] if form else []
        # SAELens opens our own class, whatever the dictionary.
        ways += ["saelens with --own-class"]
        raise InteropError(
            f"{format}: {coder.spec.name}: {found}; use {', or '.join(ways)}, or keep the run "
            "folder"
        )
    rows = default_sample(coder) if sample is None else sample.to(coder.bias.dtype)
    near = in_form(coder, form, rows)
    kind = "Gaussian" if sample is None else "sampled"
    return near, (
        f"{coder.spec.name}: written as {form}, which is not {form_of(coder)}: other latents are "
        f"active in {changed(coder, near, rows):.1%} of {len(rows)} {kind} rows",
    )


def nearest(coder: Coder, format: str) -> str | None:
    """The first of the dictionary's near forms that ``format`` holds."""
    config = coder.config
    if config.router is not None or coder.gate.solves:
        return None
    own = _gate_form(config.gate)
    topk = own in ("groupmax", *SIGNS.values())
    near = (own, *([*SIGNS.values(), "JumpReLU"] if topk else []))
    return next((form for form in near if fault(coder, format, form) is None), None)


@torch.no_grad()
def in_form(coder: Coder, form: str, rows: Float[Tensor, "B d_in"]) -> Coder:
    """The same rows and biases in a near form; the θ of a JumpReLU is measured on ``rows``."""
    gate, weights = coder.config.gate, weights_of(coder)
    k = coder.config.k
    if form == "JumpReLU" and k is not None:
        gate = JumpReLUConfig(l0=float(k))
        weights = replace(weights, threshold=_threshold(coder, rows, k))
    elif form != _gate_form(gate):
        assert k is not None
        gate = next(TopKConfig(k=k, sign=sign) for sign, name in SIGNS.items() if name == form)
    spec = coder.spec
    return coder_of(
        weights,
        gate,
        name=spec.name,
        reads=spec.reads,
        writes=spec.writes,
        prefixes=coder.config.prefixes,
    )


@torch.no_grad()
def changed(coder: Coder, other: Coder, rows: Float[Tensor, "B d_in"]) -> float:
    """The share of rows in which not the same latents are active."""
    parts = rows.split(SAMPLE_CHUNK)
    differs = torch.cat([(_on(coder, x) != _on(other, x)).any(1) for x in parts])
    return float(differs.double().mean())


@torch.no_grad()
def default_sample(coder: Coder) -> Float[Tensor, "B d_in"]:
    """Standard normal rows in the units in which the dictionary was fitted, about its centre."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(SAMPLE_ROWS, coder.spec.d_in, generator=generator).to(coder.bias)
    centre = coder.bias if coder.is_sae else 0.0
    return (rows + centre) / coder.in_scale


def _gate_form(gate: GateConfig) -> str:
    return SIGNS[gate.sign] if isinstance(gate, TopKConfig) else NAMES[gate.kind]


def _on(coder: Coder, rows: Tensor) -> Bool[Tensor, "B n"]:
    code = coder.activate(rows)
    fired = (code.value != 0).to(torch.int32)
    spread = fired.new_zeros(len(rows), coder.config.latents)
    return spread.scatter_add(1, code.unit, fired) > 0


def _threshold(coder: Coder, rows: Tensor, k: int) -> Tensor:
    """One θ for all latents, above which k of them are positive in a mean row."""
    budget = k * len(rows)
    weights, best = weights_of(coder), rows.new_zeros(0)
    for x in rows.split(SAMPLE_CHUNK):
        z = x - weights.decoder_bias if weights.subtracts else x
        acts = (z @ weights.rows().T + weights.bias()).relu().flatten()
        best = torch.cat((best, acts))
        best = best.topk(min(budget, len(best))).values
    return best[-1].expand(coder.config.latents).clone()
