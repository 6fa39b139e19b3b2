"""SAELens folders: ``cfg.json`` and ``sae_weights.safetensors``, where W_enc = Wᵀ and W_dec = D.

    standard, transcoder       relu(a)
    topk, abstopk              top-k of a (then relu), of |a|; rescaled: of ν·a, latents carry ν
    jumprelu, its transcoders  relu(a) · [a > θ]
    gated                      [π + b_gate > 0] · relu(exp(r_mag) π + b_mag)
    matching_pursuit           tied pursuit

Transcoders subtract nothing. Normalisations are folded into the weights or refused; files are
written folded. BatchTopK and Matryoshka dictionaries are written as jumprelu. Any dictionary can be
written for our own class in SAELens (``saelens_class.py``). Format: SAELens 6; older configs are
read as SAELens reads them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.core.config import to_dict
from pellucid.core.errors import InteropError
from pellucid.dictionaries import Coder
from pellucid.dictionaries.config import GateConfig
from pellucid.dictionaries.gates import ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop.converter import (
    RECORD,
    Imported,
    ReadOptions,
    WriteOptions,
    describe,
    described,
    model_of,
    name_of,
    one,
)
from pellucid.interop.files import (
    Fields,
    Tensors,
    read_tensors,
    write_object,
    write_tensors,
    writing,
)
from pellucid.interop.folds import Weights, fold_decoder_norm
from pellucid.interop.forms import form_of, held
from pellucid.interop.saelens_class import (
    ARCHITECTURE,
    build_own,
    load_own,
    own_fields,
    own_tensors,
    register,
)
from pellucid.interop.saelens_config import (
    VERSION,
    check_unknown,
    hook_fields,
    read_config,
    read_sites,
)
from pellucid.interop.saelens_norm import unnormalised
from pellucid.interop.weights import coder_of, residual_of, weights_of

__all__ = ["read_saelens", "register", "write_saelens"]

UNIT = 1e-3  # how far from 1 rounding may leave a norm
WEIGHTS = "sae_weights.safetensors"
SAES = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit")
TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)


def read_saelens(path: Path, options: ReadOptions) -> tuple[Imported, ...]:
    """The one dictionary of a SAELens folder."""
    fields = read_config(path)
    architecture = fields.choice("architecture", (*SAES, *TRANSCODERS, ARCHITECTURE))
    tensors = read_tensors(path / WEIGHTS, options.dtype)
    if architecture == ARCHITECTURE:
        coder = load_own(build_own(fields, options), tensors)
    else:
        coder = _coder(fields, tensors, architecture, options)
    metadata = fields.object("metadata")
    record = described(metadata.data)
    warnings = (*check_unknown(fields), *_check_atoms(coder))
    if unknown := tensors.unknown():
        warnings += (f"{tensors.path}: without meaning here: {', '.join(unknown)}",)
    return (
        Imported(
            coder=coder,
            model=model_of(record, metadata.find("model_name", str)),
            provenance={"format": "saelens", "config": dict(fields.data)},
            warnings=warnings,
        ),
    )


def write_saelens(coders: tuple[Coder, ...], path: Path, options: WriteOptions) -> tuple[str, ...]:
    """One dictionary as a SAELens folder."""
    coder, lines = one(coders, "saelens"), ()
    if options.own_class:
        architecture, extra, tensors = ARCHITECTURE, own_fields(coder), own_tensors(coder)
        # Our class subtracts the bias itself.
        subtracts = False
    else:
        coder, lines = held(coder, "saelens", options)
        weights = weights_of(coder)
        architecture, extra = _architecture(coder)
        tensors, subtracts = _tensors(weights), weights.subtracts
    config = {
        "architecture": architecture,
        "d_in": coder.spec.d_in,
        "d_sae": coder.config.latents,
        "dtype": options.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **extra,
        "metadata": _metadata(coder, options),
    }
    with writing(path, overwrite=options.overwrite) as aside:
        write_tensors(aside / WEIGHTS, tensors, options.dtype)
        write_object(aside / "cfg.json", config)
    return lines


def _coder(fields: Fields, tensors: Tensors, architecture: str, options: ReadOptions) -> Coder:
    transcoder = architecture in TRANSCODERS
    # hook_z joins heads before the weights, which are those of the joined width.
    fields.choice("reshape_activations", ("none", "hook_z"), "none")
    d_in, n = fields.size("d_in"), fields.size("d_sae")
    d_out = fields.size("d_out") if transcoder else d_in
    subtracts = bool(fields.find("apply_b_dec_to_input", bool, True))
    if transcoder and subtracts:
        raise InteropError(
            f"{fields.where('apply_b_dec_to_input')}: expected false in a transcoder, found true"
        )
    gate = _gate(fields, architecture, d_in, n)
    reads = not isinstance(gate, PursuitConfig)
    biased = reads and architecture != "gated"
    jumps = isinstance(gate, JumpReLUConfig)
    weights = Weights(
        encoder=tensors.take("W_enc", (d_in, n)).T if reads else None,
        encoder_bias=tensors.take("b_enc", (n,)) if biased else None,
        decoder=tensors.take("W_dec", (n, d_out)),
        decoder_bias=tensors.take("b_dec", (d_out,)),
        # Theirs also applies a ReLU.
        threshold=tensors.take("threshold", (n,)).clamp_min(0) if jumps else None,
        skip=tensors.take("W_skip", (d_out, d_in)) if "skip" in architecture else None,
        subtracts=subtracts,
    )
    if isinstance(gate, GatedConfig):
        weights = replace(
            weights,
            encoder_bias=tensors.take("b_mag", (n,)),
            gate_bias=tensors.take("b_gate", (n,)),
            log_scale=tensors.take("r_mag", (n,)),
        )
    if not reads and not subtracts:
        # Their pursuit then adds no bias either.
        weights = replace(weights, decoder_bias=torch.zeros(d_out).to(weights.decoder))
    ranked = isinstance(gate, TopKConfig)
    if ranked and fields.find("rescale_acts_by_decoder_norm", bool, False):
        _check_rows(tensors, weights.decoder)
        weights = fold_decoder_norm(weights)
    weights, gate = unnormalised(fields, weights, gate, options)
    _check_factor(tensors, n)
    reads_at, writes_at = read_sites(fields, options, transcoder=transcoder)
    record = described(fields.object("metadata").data)
    name = name_of(options, record.get("name"), fields.path.resolve().parent.name)
    return coder_of(weights, gate, name=name, reads=reads_at, writes=writes_at)


def _gate(fields: Fields, architecture: str, d_in: int, n: int) -> GateConfig:
    match architecture:
        case "topk" | "abstopk":
            k = fields.size("k", most=n, bound="d_sae")
            return TopKConfig(k=k, sign="abs" if architecture == "abstopk" else "relu")
        case "gated":
            return GatedConfig()
        case "matching_pursuit":
            steps = fields.find("max_iterations", int, d_in) or 0
            if not 1 <= steps <= n:
                raise InteropError(
                    f"{fields.where('max_iterations')}: expected 1 to d_sae = {n}, found {steps}"
                )
            return PursuitConfig(
                k=steps,
                residual=fields.find("residual_threshold", float, 1e-2) or 0.0,
                stop_repeats=bool(fields.find("stop_on_duplicate_support", bool, True)),
            )
    return JumpReLUConfig(penalty="l0") if "jumprelu" in architecture else ReLUConfig()


def _architecture(coder: Coder) -> tuple[str, dict[str, Any]]:
    gate, spec = coder.config.gate, coder.spec
    if not coder.is_sae:
        skip = "skip_" if coder.skip is not None else ""
        jump = "" if isinstance(gate, ReLUConfig) else "jumprelu_"
        return f"{jump}{skip}transcoder", {"d_out": spec.d_out}
    match gate:
        case ReLUConfig():
            return "standard", {}
        case TopKConfig():
            extra = {"k": gate.k, "rescale_acts_by_decoder_norm": False}
            return "abstopk" if gate.sign == "abs" else "topk", extra
        case GatedConfig():
            return "gated", {}
        case PursuitConfig():
            return "matching_pursuit", {
                "residual_threshold": residual_of(coder),
                "max_iterations": gate.k,
                "stop_on_duplicate_support": gate.stop_repeats,
            }
    return "jumprelu", {}


def _tensors(weights: Weights) -> dict[str, Tensor]:
    gated = weights.log_scale is not None
    found = {
        "W_enc": None if weights.encoder is None else weights.encoder.T,
        "W_dec": weights.decoder,
        "b_enc": None if gated else weights.encoder_bias,
        "b_dec": weights.decoder_bias,
        "threshold": weights.threshold,
        "b_mag": weights.encoder_bias if gated else None,
        "b_gate": weights.gate_bias,
        "r_mag": weights.log_scale,
        "W_skip": weights.skip,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _metadata(coder: Coder, options: WriteOptions) -> dict[str, Any]:
    spec = coder.spec
    return {
        "sae_lens_version": VERSION,
        "model_name": options.model.get("name"),
        "model_class_name": "AutoModelForCausalLM",
        "model_from_pretrained_kwargs": {},
        "hook_head_index": None,
        **hook_fields(spec.reads),
        **({} if coder.is_sae else hook_fields(spec.writes, "_out")),
        "training_architecture": form_of(coder),
        "training_architecture_details": to_dict(coder.config),
        **options.metadata,
        RECORD: describe(coder, options),
    }


def _check_atoms(coder: Coder) -> tuple[str, ...]:
    """Their pursuit takes atoms as they are, ours trains unit ones."""
    norms = coder.decoder.rows().norms()
    least, most = float(norms.detach().min()), float(norms.detach().max())
    if not coder.gate.solves or max(1 - least, most - 1) < UNIT:
        return ()
    return (
        f"W_dec: rows have norms from {least:.3g} to {most:.3g}, used as they are; training would "
        "make them 1",
    )


def _check_rows(tensors: Tensors, decoder: Tensor) -> None:
    silent = (decoder.norm(dim=1) == 0).nonzero().flatten().tolist()
    if silent:
        raise InteropError(
            f"{tensors.path}: W_dec: rescale_acts_by_decoder_norm divides by norms of rows, found "
            f"row {silent[0]} zero"
        )


def _check_factor(tensors: Tensors, n: int) -> None:
    """Files of version 5 may hold a factor per latent, which is 1 unless it was fitted."""
    factor = tensors.find("scaling_factor", (n,))
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        raise InteropError(
            f"{tensors.path}: scaling_factor: expected ones, found others; SAELens 6 has no such "
            "factor either"
        )
