"""circuit-tracer's transcoder sets: ``config.yaml`` and ``layer_L.safetensors`` for every layer.

    a = W_enc x + b_enc            y = Σ_j f_j W_dec_j + b_dec [+ W_skip x]
    relu       relu(a)
    topk       a of the k largest a, negative ones too: our signed TopK
    neither    a · [a > θ] where a file holds θ, else relu(a)

Nothing is subtracted; all layers from 0 on have one width and one number of features. Cross-layer
transcoders write to several sites and are refused. k stands in ``config.yaml`` only: a tensor ``k``
is rejected by circuit-tracer's own loader.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pellucid.core.errors import InteropError, MissingExtra
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder
from pellucid.dictionaries.config import GateConfig
from pellucid.dictionaries.gates import ReLUConfig, TopKConfig
from pellucid.dictionaries.thresholds import JumpReLUConfig
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
)
from pellucid.interop.files import Fields, Tensors, read_tensors, write_tensors, writing
from pellucid.interop.folds import Weights, drop_subtraction
from pellucid.interop.forms import held
from pellucid.interop.sites import hook_of, layer_of, site_of_hook
from pellucid.interop.weights import coder_of, weights_of

CONFIG = "config.yaml"
KINDS = ("transcoder_set",)
THRESHOLD = "activation_function.threshold"
KNOWN = ("model_name", "scan", "scan_name", "repo_id", "revision", "subfolder", RECORD)


def read_circuit_tracer(path: Path, options: ReadOptions) -> tuple[Imported, ...]:
    """The transcoders of a set, by layer."""
    fields = Fields(path / CONFIG, _read_yaml(path / CONFIG))
    if fields.data.get("model_kind") == "cross_layer_transcoder":
        raise InteropError(
            f"{fields.where('model_kind')}: found cross_layer_transcoder, whose features write to "
            "several sites; expected transcoder_set"
        )
    fields.choice("model_kind", KINDS)
    activation = fields.find("activation", str, "") or ""
    if activation not in ("", "relu", "topk"):
        raise InteropError(
            f"{fields.where('activation')}: expected relu, topk or nothing, found {activation!r}"
        )
    fields.take("feature_input_hook", str)
    fields.take("feature_output_hook", str)
    fields.find("k", int)
    files = _files(path, fields)
    for site in (options.reads, options.writes):
        if site is not None and len(files) > 1 and "*" not in site.module:
            raise InteropError(
                f"{path}: one site was given for {len(files)} layers, found {site}; write * for "
                "the layer's number"
            )
    sizes: set[tuple[int, int]] = set()
    found = []
    for layer, file in enumerate(files):
        coder, warnings, size = _read_one(file, layer, activation, fields, options)
        sizes.add(size)
        if len(sizes) > 1:
            raise InteropError(f"{file}: W_enc: expected one shape in all layers, found {sizes}")
        unknown = fields.unknown(KNOWN) if layer == 0 else ()
        warnings += (
            (f"{fields.path}: without meaning here: {', '.join(unknown)}",) if unknown else ()
        )
        found.append(
            Imported(
                coder=coder,
                model=model_of(_record(fields, layer), fields.data.get("model_name")),
                provenance={
                    "format": "circuit_tracer",
                    "config": dict(fields.data),
                    "layer": layer,
                    "file": file.name,
                },
                warnings=warnings,
            )
        )
    return tuple(found)


def write_circuit_tracer(
    coders: tuple[Coder, ...], path: Path, options: WriteOptions
) -> tuple[str, ...]:
    """The transcoders of every layer from 0 on as one set."""
    ordered = _by_layer(coders)
    told: list[str] = []
    ready = []
    for coder in ordered:
        near, lines = held(coder, "circuit_tracer", options)
        ready.append(near)
        told += lines
    activation = _common("activation", [_activation(coder) for coder in ready])
    _common("skip", [coder.skip is not None for coder in ready])
    _common("latents", [coder.config.latents for coder in ready])
    _common("widths", [coder.spec.d_in for coder in ready])
    config = {
        "model_name": options.model.get("name"),
        "model_kind": KINDS[0],
        "feature_input_hook": _common("reads", [_hook(coder.spec.reads) for coder in ready]),
        "feature_output_hook": _common("writes", [_hook(coder.spec.writes) for coder in ready]),
        "scan": path.resolve().name,
        **activation,
        "transcoders": [f"layer_{layer}.safetensors" for layer in range(len(ready))],
        **options.metadata,
        RECORD: {"layers": [describe(coder, options) for coder in ready]},
    }
    with writing(path, overwrite=options.overwrite) as aside:
        for layer, coder in enumerate(ready):
            write_tensors(aside / f"layer_{layer}.safetensors", _tensors(coder), options.dtype)
        (aside / CONFIG).write_text(_yaml().safe_dump(config, sort_keys=False), encoding="utf-8")
    return tuple(told)


def _read_one(
    file: Path, layer: int, activation: str, fields: Fields, options: ReadOptions
) -> tuple[Coder, tuple[str, ...], tuple[int, int]]:
    tensors = read_tensors(file, options.dtype)
    n, d = tensors.length("b_enc"), tensors.length("b_dec")
    gate, jumps = _gate(activation, fields, tensors, n)
    weights = Weights(
        encoder=tensors.take("W_enc", (n, d)),
        encoder_bias=tensors.take("b_enc", (n,)),
        decoder=tensors.take("W_dec", (n, d)),
        decoder_bias=tensors.take("b_dec", (d,)),
        threshold=tensors.take(THRESHOLD, (n,)) if jumps else None,
        skip=tensors.find("W_skip", (d, d)),
        subtracts=False,
    )
    record = _record(fields, layer)
    reads, writes = _sites(fields, layer, record, options)
    scan = Path(str(fields.data.get("scan") or file.resolve().parent.name)).name
    name = f"{name_of(options, record.get('name'), scan)}-{layer}"
    coder = coder_of(weights, gate, name=name, reads=reads, writes=writes)
    unknown = tensors.unknown()
    told = (f"{file}: without meaning here: {', '.join(unknown)}",) if unknown else ()
    return coder, told, (n, d)


def _gate(activation: str, fields: Fields, tensors: Tensors, n: int) -> tuple[GateConfig, bool]:
    """The gate, and whether it has thresholds."""
    stored = tensors.number("k")
    if activation == "topk":
        k = fields.size("k", most=n, bound="features")
        if stored is not None and stored != k:
            raise InteropError(f"{tensors.path}: k: expected {k} as in {CONFIG}, found {stored:g}")
        return TopKConfig(k=k, sign="signed"), False
    if stored is not None:
        raise InteropError(
            f"{fields.where('activation')}: expected topk, since {tensors.path.name} holds k, "
            f"found {activation or 'nothing'}; add activation: topk and k: {stored:g}"
        )
    if activation == "relu" or not tensors.holds(THRESHOLD):
        return ReLUConfig(), False
    return JumpReLUConfig(penalty="l0"), True


def _files(path: Path, fields: Fields) -> list[Path]:
    """One file per layer, from 0 on without a gap."""
    named = fields.find("transcoders", list)
    if named is None:
        if any(path.glob("W_enc_*.safetensors")):
            raise InteropError(f"{path}: found cross-layer files; expected layer_0.safetensors")
        numbers = [
            int(p.stem.removeprefix("layer_"))
            for p in path.glob("layer_*.safetensors")
            if p.stem.removeprefix("layer_").isdigit()
        ]
        _check_layers(f"{path}: layers", sorted(numbers))
        return [path / f"layer_{layer}.safetensors" for layer in range(len(numbers))]
    if not named:
        raise InteropError(f"{fields.where('transcoders')}: expected files, found none")
    for layer, name in enumerate(named):
        if not isinstance(name, str) or name.startswith("hf://"):
            raise InteropError(
                f"{fields.where('transcoders')}: expected local files, found {name!r}; download it "
                "and name the file"
            )
        number = re.search(r"layer_(\d+)\.safetensors$", name)
        if number and int(number[1]) != layer:
            raise InteropError(
                f"{fields.where('transcoders')}: expected every layer from 0, found {name} in "
                f"place {layer}"
            )
    return [path / str(name) for name in named]


def _sites(fields: Fields, layer: int, record: Any, options: ReadOptions) -> tuple[Site, Site]:
    """The sites of one layer; in those of the options ``*`` stands for its number."""
    given = replace(
        options, reads=_numbered(options.reads, layer), writes=_numbered(options.writes, layer)
    )
    if record:
        return chosen(Site.parse(record["reads"]), Site.parse(record["writes"]), given)
    sites = []
    for site, field in ((given.reads, "feature_input_hook"), (given.writes, "feature_output_hook")):
        if site is None:
            site = site_of_hook(
                f"blocks.{layer}.{fields.take(field, str)}",
                layers=options.layers,
                norm_folded=options.norm_folded,
                where=fields.where(field),
            )
        sites.append(site)
    return sites[0], sites[1]


def _numbered(site: Site | None, layer: int) -> Site | None:
    return None if site is None else replace(site, module=site.module.replace("*", str(layer)))


def _by_layer(coders: Sequence[Coder]) -> list[Coder]:
    numbered = [(layer_of(coder.spec.writes), coder) for coder in coders]
    lost = [coder.spec.name for layer, coder in numbered if layer is None]
    if lost:
        raise InteropError(f"circuit_tracer: {lost[0]}: expected a site in a layer, found none")
    ordered = sorted(((layer or 0, coder) for layer, coder in numbered), key=lambda pair: pair[0])
    _check_layers("circuit_tracer: layers", [layer for layer, _ in ordered])
    return [coder for _, coder in ordered]


def _check_layers(where: str, found: list[int]) -> None:
    if not found or found != list(range(len(found))):
        listed = ", ".join(map(str, found)) or "none"
        raise InteropError(f"{where}: expected every layer from 0 once, found {listed}")


def _common(what: str, values: list[Any]) -> Any:
    """The value that all layers share."""
    odd = next((value for value in values if value != values[0]), values[0])
    if odd != values[0]:
        raise InteropError(
            f"circuit_tracer: {what}: expected one for all layers, found {values[0]} and {odd}"
        )
    return values[0]


def _hook(site: Site) -> str:
    name = hook_of(site)
    if name is None:
        raise InteropError(
            f"circuit_tracer: site: expected one that TransformerLens has a hook for, found {site}"
        )
    return name.split(".", 2)[2]


def _activation(coder: Coder) -> dict[str, Any]:
    match coder.config.gate:
        case ReLUConfig():
            return {"activation": "relu"}
        case TopKConfig(k=k):
            return {"activation": "topk", "k": k}
    return {}


def _tensors(coder: Coder) -> dict[str, Any]:
    weights = drop_subtraction(weights_of(coder))
    found = {
        "W_enc": weights.rows(),
        "W_dec": weights.decoder,
        "b_enc": weights.bias(),
        "b_dec": weights.decoder_bias,
        THRESHOLD: weights.threshold,
        "W_skip": weights.skip,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _record(fields: Fields, layer: int) -> Mapping[str, Any]:
    """What we wrote about one layer."""
    whole = fields.data.get(RECORD)
    layers = whole.get("layers") if isinstance(whole, Mapping) else None
    known = isinstance(layers, list) and layer < len(layers)
    return described({RECORD: layers[layer]}) if known and layers else {}


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtra("PyYAML", "interop", "reading config.yaml") from None
    return yaml


def _read_yaml(path: Path) -> dict[str, Any]:
    yaml = _yaml()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InteropError(
            f"{path}: expected YAML, found {' '.join(reason.split())[:200]}"
        ) from None
    if not isinstance(data, dict):
        raise InteropError(f"{path}: expected YAML fields, found {type(data).__name__}")
    return data
