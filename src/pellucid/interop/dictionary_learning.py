"""dictionary_learning folders: ``ae.pt``, a state dict, and ``config.json``.

    AutoEncoder               relu(W (x − bias) + b)
    AutoEncoderNew            relu(W x + b)
    GatedAutoEncoder          [π + gate_bias > 0] · relu(exp(r_mag) π + mag_bias)
    JumpReluAutoEncoder       relu(a · [a > θ]),  a = W_encᵀ x + b_enc
    AutoEncoderTopK           top-k of relu(a); its threshold is not used
    BatchTopKSAE, Matryoshka  relu(a) · [a > threshold]

``encoder.weight`` is W, ``decoder.weight`` Dᵀ; classes with ``W_enc`` and ``W_dec`` hold Wᵀ and D.
Biases and thresholds are in raw activation units. Nothing of an archive is executed: tensors and
plain values are read, all else is refused. Format: dictionary_learning 0.1.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder
from pellucid.dictionaries.config import GateConfig
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop.converter import (
    RECORD,
    Imported,
    ReadOptions,
    WriteOptions,
    chosen,
    describe,
    described,
    model_of,
    name_of,
    one,
)
from pellucid.interop.files import (
    Fields,
    Tensors,
    plain,
    read_archive,
    read_object,
    write_object,
    writing,
)
from pellucid.interop.folds import Weights, add_subtraction, drop_subtraction
from pellucid.interop.forms import held
from pellucid.interop.sites import layer_of, layer_path
from pellucid.interop.weights import coder_of, weights_of

WEIGHTS, CONFIG = "ae.pt", "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one class stores its tensors: the bias's name, Wᵀ or W, and whether it subtracts."""

    trainer: str
    bias: str
    by_columns: bool = False
    subtracts: bool = True


CLASSES: dict[str, Layout] = {
    "AutoEncoder": Layout(trainer="StandardTrainer", bias="bias"),
    "AutoEncoderNew": Layout(
        trainer="StandardTrainerAprilUpdate", bias="decoder.bias", subtracts=False
    ),
    "GatedAutoEncoder": Layout(trainer="GatedSAETrainer", bias="decoder_bias"),
    "JumpReluAutoEncoder": Layout(
        trainer="JumpReluTrainer", bias="b_dec", by_columns=True, subtracts=False
    ),
    "AutoEncoderTopK": Layout(trainer="TopKTrainer", bias="b_dec"),
    "BatchTopKSAE": Layout(trainer="BatchTopKTrainer", bias="b_dec"),
    "MatryoshkaBatchTopKSAE": Layout(
        trainer="MatryoshkaBatchTopKTrainer", bias="b_dec", by_columns=True
    ),
}


def read_dictionary_learning(path: Path, options: ReadOptions) -> tuple[Imported, ...]:
    """The one dictionary of a folder."""
    fields = Fields(path / CONFIG, read_object(path / CONFIG))
    trainer = fields.object("trainer")
    kind = trainer.choice("dict_class", tuple(CLASSES))
    if trainer.data.get("apply_b_dec_to_input"):
        raise InteropError(
            f"{trainer.where('apply_b_dec_to_input')}: expected nothing or false, found true; its "
            "own loader forgets it"
        )
    d, n = trainer.size("activation_dim"), trainer.size("dict_size")
    tensors = read_archive(path / WEIGHTS, options.dtype)
    gate, threshold = _gate(kind, trainer, tensors, n)
    weights = _weights(kind, tensors, d, n, threshold)
    record = described(fields.data)
    reads, writes = _sites(fields, trainer, record, options)
    coder = coder_of(
        weights,
        gate,
        name=name_of(options, record.get("name"), path.resolve().name),
        reads=reads,
        writes=writes,
        prefixes=_prefixes(tensors, n) if kind.startswith("Matryoshka") else (),
    )
    unknown = tensors.unknown()
    return (
        Imported(
            coder=coder,
            model=model_of(record, trainer.find("lm_name", str)),
            provenance={"format": "dictionary_learning", "config": dict(fields.data)},
            warnings=(f"{tensors.path}: without meaning here: {', '.join(unknown)}",)
            if unknown
            else (),
        ),
    )


def write_dictionary_learning(
    coders: tuple[Coder, ...], path: Path, options: WriteOptions
) -> tuple[str, ...]:
    """One dictionary as a folder of theirs."""
    coder = one(coders, "dictionary_learning")
    coder, lines = held(coder, "dictionary_learning", options)
    kind, spec = _class(coder), coder.spec
    layer, resid = layer_of(spec.reads), str(spec.reads).endswith(":out")
    plain_layer = resid and layer is not None and spec.reads.module.endswith(f".{layer}")
    trainer = {
        "trainer_class": CLASSES[kind].trainer,
        "dict_class": kind,
        "activation_dim": spec.d_in,
        "dict_size": coder.config.latents,
        **({} if coder.config.k is None else {"k": coder.config.k}),
        "layer": layer,
        "lm_name": options.model.get("name"),
        "submodule_name": f"resid_post_layer_{layer}" if plain_layer else spec.reads.module,
        **options.metadata,
    }
    with writing(path, overwrite=options.overwrite) as aside:
        tensors = plain(aside / WEIGHTS, _state(kind, coder), options.dtype)
        torch.save(tensors, aside / WEIGHTS)
        write_object(aside / CONFIG, {"trainer": trainer, RECORD: describe(coder, options)})
    return lines


def _gate(kind: str, trainer: Fields, tensors: Tensors, n: int) -> tuple[GateConfig, float | None]:
    """The gate, and the one threshold of a BatchTopK."""
    match kind:
        case "AutoEncoder" | "AutoEncoderNew":
            return ReLUConfig(), None
        case "GatedAutoEncoder":
            return GatedConfig(), None
        case "JumpReluAutoEncoder":
            return JumpReLUConfig(penalty="l0"), None
    k = trainer.size("k", most=n, bound="dict_size")
    stored, threshold = tensors.number("k"), tensors.number("threshold")
    if stored is not None and stored != k:
        raise InteropError(f"{tensors.path}: k: expected {k} as in {CONFIG}, found {stored:g}")
    if kind == "AutoEncoderTopK":
        return TopKConfig(k=k), None
    if threshold is None or threshold < 0:
        found = "nothing" if threshold is None else f"{threshold:g}, which was never estimated"
        raise InteropError(
            f"{tensors.path}: threshold: expected at least 0, found {found}; train it longer"
        )
    return BatchTopKConfig(k=k), threshold


def _weights(kind: str, tensors: Tensors, d: int, n: int, threshold: float | None) -> Weights:
    layout = CLASSES[kind]
    gated = kind == "GatedAutoEncoder"
    if layout.by_columns:
        encoder, decoder = tensors.take("W_enc", (d, n)).T, tensors.take("W_dec", (n, d))
        bias = "b_enc"
    else:
        encoder = tensors.take("encoder.weight", (n, d))
        decoder = tensors.take("decoder.weight", (d, n)).T
        bias = "mag_bias" if gated else "encoder.bias"
    each = None if threshold is None else decoder.new_full((n,), threshold)
    if kind == "JumpReluAutoEncoder":
        # Theirs also applies a ReLU.
        each = tensors.take("threshold", (n,)).clamp_min(0)
    return Weights(
        encoder=encoder,
        encoder_bias=tensors.take(bias, (n,)),
        decoder=decoder,
        decoder_bias=tensors.take(layout.bias, (d,)),
        threshold=each,
        log_scale=tensors.take("r_mag", (n,)) if gated else None,
        gate_bias=tensors.take("gate_bias", (n,)) if gated else None,
        subtracts=layout.subtracts,
    )


def _prefixes(tensors: Tensors, n: int) -> tuple[float, ...]:
    """Shares of latents up to the end of each group."""
    found = tensors.values("group_sizes")
    if found is None or sum(found) != n or min(found) < 1:
        raise InteropError(
            f"{tensors.path}: group_sizes: expected sizes that add up to {n}, found {found}"
        )
    return tuple(end / n for end in accumulate(found))


def _class(coder: Coder) -> str:
    match coder.config.gate:
        case ReLUConfig():
            return "AutoEncoder"
        case GatedConfig():
            return "GatedAutoEncoder"
        case JumpReLUConfig():
            return "JumpReluAutoEncoder"
        case TopKConfig():
            return "AutoEncoderTopK"
    return "MatryoshkaBatchTopKSAE" if coder.config.prefixes else "BatchTopKSAE"


def _state(kind: str, coder: Coder) -> dict[str, Tensor]:
    layout, weights = CLASSES[kind], weights_of(coder)
    weights = add_subtraction(weights) if layout.subtracts else drop_subtraction(weights)
    if layout.by_columns:
        state = {"W_enc": weights.rows().T, "W_dec": weights.decoder, "b_enc": weights.bias()}
    else:
        state = {"encoder.weight": weights.rows(), "decoder.weight": weights.decoder.T}
        gated = weights.log_scale is not None
        state["mag_bias" if gated else "encoder.bias"] = weights.bias()
    state[layout.bias] = weights.decoder_bias
    if weights.log_scale is not None and weights.gate_bias is not None:
        state |= {"r_mag": weights.log_scale, "gate_bias": weights.gate_bias}
    k = coder.config.k
    if kind == "JumpReluAutoEncoder" and weights.threshold is not None:
        state["threshold"] = weights.threshold
    elif k is not None:
        # An AutoEncoderTopK has a threshold it does not use, −1 where never estimated.
        never = torch.tensor(-1.0)
        state["k"] = torch.tensor(k, dtype=torch.int32)
        state["threshold"] = never if weights.threshold is None else weights.threshold[0]
    if kind.startswith("Matryoshka"):
        n = coder.config.latents
        ends = [max(1, round(n * share)) for share in sorted(coder.config.prefixes)]
        sizes = [end - start for start, end in zip([0, *ends], ends)]
        state["group_sizes"] = torch.tensor([size for size in sizes if size])
    return state


def _sites(fields: Fields, trainer: Fields, record: Any, options: ReadOptions) -> tuple[Site, Site]:
    if record:
        return chosen(Site.parse(record["reads"]), Site.parse(record["writes"]), options)
    if options.reads or options.writes:
        both = options.reads or options.writes
        assert both is not None
        return options.reads or both, options.writes or both
    name = trainer.find("submodule_name", str, "") or ""
    side = fields.object("buffer").find("io", str, "out")
    found = re.fullmatch(r"resid_post_layer_(\d+)", name)
    if side != "out" or not (found or re.fullmatch(r"\w+(\.\w+)+", name)):
        raise InteropError(
            f"{trainer.where('submodule_name')}: expected resid_post_layer_L or a module's path, "
            f"whose output is read, found {name!r} ({side}); name the site with --reads"
        )
    module = layer_path(options.layers, int(found[1])) if found else name
    return Site(module=module, port="out"), Site(module=module, port="out")
