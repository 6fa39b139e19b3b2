"""sparsify folders: ``HOOKPOINT/cfg.json`` and ``HOOKPOINT/sae.safetensors``.

    z = x − b_dec, or x in a transcoder           y = Σ_j f_j D_j + b_dec [+ W_skip x]
    topk       the k largest relu(a)
    groupmax   the strongest relu(a) of each of k contiguous blocks of n/k latents

A hookpoint is a module's path below the base model (``layers.5.mlp``): an SAE reads and writes the
module's output, a transcoder reads its input and writes its output. The folder's name alone says
which it is. Input and output are equally wide. Format: sparsify 1.3.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder
from pellucid.dictionaries.gates import GroupmaxConfig, TopKConfig
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
from pellucid.interop.files import (
    Fields,
    read_object,
    read_tensors,
    write_object,
    write_tensors,
    writing,
)
from pellucid.interop.folds import Weights, add_subtraction
from pellucid.interop.forms import held
from pellucid.interop.sites import OWN_LAYERS, to_hugging_face, to_own
from pellucid.interop.weights import coder_of, weights_of

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
ACTIVATIONS = ("topk", "groupmax")
# Training alone looks at these.
IGNORED = ("normalize_decoder", "multi_topk")
BASES = ("model", "transformer", "gpt_neox")


def read_sparsify(path: Path, options: ReadOptions) -> tuple[Imported, ...]:
    """The dictionary of a hookpoint's folder, or those of every hookpoint below a run's folder."""
    path = path.resolve()
    if (path / CONFIG).exists():
        return (_read_one(path, options),)
    folders = sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
    if not folders:
        raise InteropError(f"{path}: expected {CONFIG} or folders that hold it, found none")
    if len(folders) > 1 and (options.reads or options.writes or options.name):
        raise InteropError(
            f"{path}: one name or site was given for {len(folders)} dictionaries; read one folder"
        )
    if len(folders) > 1:
        # Hookpoints differ where recorded names need not.
        return tuple(
            _read_one(folder, replace(options, name=name_of(options, folder.name)))
            for folder in folders
        )
    return (_read_one(folders[0], options),)


def write_sparsify(coders: tuple[Coder, ...], path: Path, options: WriteOptions) -> tuple[str, ...]:
    """Each dictionary in a folder below ``path`` that is named by its hookpoint."""
    told: list[str] = []
    with writing(path, overwrite=options.overwrite) as aside:
        for coder in coders:
            coder, lines = held(coder, "sparsify", options)
            hookpoint = _hookpoint(coder)
            if (aside / hookpoint).exists():
                raise InteropError(
                    f"{path}: two dictionaries for {hookpoint}; export them into two folders"
                )
            _write_one(coder, aside / hookpoint, options)
            told += [*lines, f"{coder.spec.name}: written to {path / hookpoint}"]
    return tuple(told)


def _read_one(path: Path, options: ReadOptions) -> Imported:
    fields = Fields(path / CONFIG, read_object(path / CONFIG))
    tensors = read_tensors(path / WEIGHTS, options.dtype)
    d = fields.size("d_in")
    expansion = fields.find("expansion_factor", int, 32) or 0
    n = fields.find("num_latents", int, 0) or d * expansion
    activation = fields.choice("activation", ACTIVATIONS, "topk")
    k = fields.size("k", most=n, bound="num_latents")
    if activation == "groupmax" and n % k:
        raise InteropError(
            f"{fields.where('k')}: expected a divisor of num_latents = {n}, found {k}; groupmax "
            "has equal blocks"
        )
    transcoder = bool(fields.find("transcode", bool, False))
    skips = bool(fields.find("skip_connection", bool, False))
    if fields.data.get("signed"):
        raise InteropError(f"{fields.where('signed')}: expected false, found true")
    weights = Weights(
        encoder=tensors.take("encoder.weight", (n, d)),
        encoder_bias=tensors.take("encoder.bias", (n,)),
        decoder=tensors.take("W_dec", (n, d)),
        decoder_bias=tensors.take("b_dec", (d,)),
        skip=tensors.take("W_skip", (d, d)) if skips else None,
        subtracts=not transcoder,
    )
    record = described(fields.data)
    reads, writes = _sites(path, record, options, transcoder=transcoder)
    coder = coder_of(
        weights,
        TopKConfig(k=k) if activation == "topk" else GroupmaxConfig(k=k),
        name=name_of(options, record.get("name"), path.name),
        reads=reads,
        writes=writes,
    )
    unknown = (*fields.unknown((*IGNORED, RECORD, "signed")), *tensors.unknown())
    return Imported(
        coder=coder,
        model=_model(path, record),
        provenance={"format": "sparsify", "config": dict(fields.data)},
        warnings=(f"{path}: without meaning here: {', '.join(unknown)}",) if unknown else (),
    )


def _write_one(coder: Coder, folder: Path, options: WriteOptions) -> None:
    # What is subtracted is b_dec, or nothing: theirs has no third way.
    weights, gate = weights_of(coder), coder.config.gate
    weights = add_subtraction(weights) if coder.is_sae else weights
    assert isinstance(gate, TopKConfig | GroupmaxConfig)
    tensors = {
        "encoder.weight": weights.rows(),
        "encoder.bias": weights.bias(),
        "W_dec": weights.decoder,
        "b_dec": weights.decoder_bias,
        **({} if weights.skip is None else {"W_skip": weights.skip}),
    }
    config = {
        "activation": gate.kind,
        "expansion_factor": max(1, coder.config.latents // coder.spec.d_in),
        "normalize_decoder": False,
        "num_latents": coder.config.latents,
        "k": gate.k,
        "multi_topk": False,
        "skip_connection": weights.skip is not None,
        "transcode": not coder.is_sae,
        "d_in": coder.spec.d_in,
        **options.metadata,
        RECORD: describe(coder, options),
    }
    folder.mkdir(parents=True)
    write_tensors(folder / WEIGHTS, tensors, options.dtype)
    write_object(folder / CONFIG, config)


def _sites(path: Path, record: Any, options: ReadOptions, *, transcoder: bool) -> tuple[Site, Site]:
    if record:
        return chosen(Site.parse(record["reads"]), Site.parse(record["writes"]), options)
    module = _module(path.name, options.layers)
    writes = Site(module=module, port="out")
    return chosen(Site(module=module, port="in") if transcoder else writes, writes, options)


def _module(hookpoint: str, layers: str) -> str:
    """The path in the whole model: ``layers.5.mlp`` → ``model.layers.5.mlp``."""
    if layers == OWN_LAYERS:
        return to_own(Site(module=f"model.{hookpoint}", port="out")).module
    base = layers.rpartition(".")[0]
    return f"{base}.{hookpoint}" if base else hookpoint


def _hookpoint(coder: Coder) -> str:
    """The path below the base model of the module whose output is written.

    Errors: an ``InteropError`` for sites that are not those of one module.
    """
    reads, writes = to_hugging_face(coder.spec.reads), to_hugging_face(coder.spec.writes)
    ports = ("out", "out") if coder.is_sae else ("in", "out")
    if reads.module != writes.module or (reads.port, writes.port) != ports:
        wanted = "one module's output" if coder.is_sae else "one module's input and output"
        raise InteropError(
            f"sparsify: {coder.spec.name}: sites: expected {wanted}, found {coder.spec.reads} and "
            f"{coder.spec.writes}; keep the run folder"
        )
    base, _, rest = writes.module.partition(".")
    return rest if base in BASES and rest else writes.module


def _model(path: Path, record: Any) -> dict[str, str]:
    run = path.parent / RUN
    return model_of(record, read_object(run).get("model") if run.exists() else None)
