"""The ``cfg.json`` of SAELens: its versions, its sites, and fields that must not be overlooked.

Since version 6 what concerns the language model stands under ``metadata``; before, everything
stood beside everything and some fields had other names. SAELens reads a config without a version
of at least 6 as an old one and then drops ``metadata``, so one is always written.
"""

import difflib
import re
from pathlib import Path
from typing import Any

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.interop.converter import ReadOptions, chosen, described
from pellucid.interop.files import Fields, read_object
from pellucid.interop.sites import LAYERS, hook_of, site_of_hook, to_hugging_face

VERSION = "6.54.12"
NEWEST = 6

RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
# Fields of an old config that belong under ``metadata`` today.
OF_MODEL = (
    "model_name",
    "model_class_name",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "hook_head_index_out",
    "hf_hook_name",
    "hf_hook_name_out",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_version",
    "sae_lens_training_version",
)
# What no reader may overlook, so that a misspelling of it is an error.
DECISIVE = (
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "rescale_acts_by_decoder_norm",
    "residual_threshold",
    "max_iterations",
    "stop_on_duplicate_support",
)
IGNORED = ("dtype", "device", "metadata", "activation_fn", "activation_fn_kwargs", "coder")
CLOSE = 0.8


def read_config(path: Path) -> Fields:
    """The config of a folder in the form of version 6.

    Errors: an ``InteropError`` for a newer version and for fields that change the code in ways
    that nothing here expresses.
    """
    file = path / "cfg.json"
    data = read_object(file)
    metadata = data.get("metadata")
    inner = metadata if isinstance(metadata, dict) else {}
    version = data.get("sae_lens_version") or inner.get("sae_lens_version")
    major = int(found[0]) if (found := re.match(r"\d+", str(version or ""))) else None
    if major is not None and major > NEWEST:
        raise InteropError(
            f"{file}: sae_lens_version: expected at most {NEWEST}, found {version}; upgrade "
            "pellucid"
        )
    if metadata is None and (major is None or major < NEWEST):
        data = _upgraded(data)
    if data.get("finetuning_scaling_factor"):
        raise InteropError(
            f"{file}: finetuning_scaling_factor: expected false, found "
            f"{data['finetuning_scaling_factor']!r}; SAELens 6 has no such factor either"
        )
    usual = ("topk", "relu") if data.get("architecture") == "topk" else ("relu",)
    if data.get("activation_fn", "relu") not in usual:
        raise InteropError(
            f"{file}: activation_fn: expected {usual[0]}, found {data['activation_fn']!r}"
        )
    return Fields(file, data)


def check_unknown(fields: Fields) -> tuple[str, ...]:
    """A warning that names the fields nobody asked for; a decisive one misspelt is an error."""
    unknown = fields.unknown((*IGNORED, *OF_MODEL, "finetuning_scaling_factor"))
    for key in unknown:
        meant = difflib.get_close_matches(key, DECISIVE, n=1, cutoff=CLOSE)
        if meant and meant[0] not in fields.data:
            raise InteropError(f"{fields.where(key)}: unknown field; did you mean {meant[0]!r}?")
    return (f"{fields.path}: without meaning here: {', '.join(unknown)}",) if unknown else ()


def read_sites(fields: Fields, options: ReadOptions, *, transcoder: bool) -> tuple[Site, Site]:
    """Where the dictionary reads and writes, by the options, our own record, or hooks' names."""
    metadata = fields.object("metadata")
    record = described(metadata.data)
    if record:
        return chosen(Site.parse(record["reads"]), Site.parse(record["writes"]), options)
    reads = options.reads or _site(metadata, "hook_name", options)
    if not transcoder:
        return reads, options.writes or reads
    return reads, options.writes or _site(metadata, "hook_name_out", options)


def _site(metadata: Fields, name: str, options: ReadOptions) -> Site:
    hook = metadata.find(name, str)
    where = metadata.where(name)
    if hook is None:
        raise InteropError(f"{where}: expected a hook, found nothing; name the site yourself")
    if metadata.data.get("hook_head_index") is not None:
        raise InteropError(
            f"{metadata.where('hook_head_index')}: expected none, found "
            f"{metadata.data['hook_head_index']}; one head is no module's output: name a site"
        )
    layers = options.layers
    beside = re.match(r"(.+?)\.\d+(\.|$)", metadata.find(f"hf_{name}", str) or "")
    if layers == LAYERS and beside:
        layers = beside[1]
    return site_of_hook(hook, layers=layers, norm_folded=options.norm_folded, where=where)


def hook_fields(site: Site, suffix: str = "") -> dict[str, Any]:
    """The names of a site: SAELens hooks the outputs of a Hugging Face model's modules by path."""
    theirs = to_hugging_face(site)
    if theirs.port == "out":
        return {f"hook_name{suffix}": theirs.module, f"hf_hook_name{suffix}": theirs.module}
    return {f"hook_name{suffix}": hook_of(site) or str(theirs)}


def _upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """An old config in today's form, by the rules of SAELens itself."""
    data = {RENAMED.get(key, key): value for key, value in old.items()}
    data.setdefault("architecture", "standard")
    if data.get("activation_fn") == "topk":
        data["architecture"] = "topk"
        kwargs = data.get("activation_fn_kwargs")
        data["k"] = kwargs.get("k") if isinstance(kwargs, dict) else None
    normalise = data.get("normalize_activations")
    if normalise is None or isinstance(normalise, bool):
        data["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    if "hook_z" in str(data.get("hook_name", "")):
        data.setdefault("reshape_activations", "hook_z")
    metadata = {key: data[key] for key in OF_MODEL if key in data}
    return {**data, "metadata": metadata}
