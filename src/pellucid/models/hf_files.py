"""Our weights under transformers' names, on disk and back.

``config.json`` and ``model.safetensors`` in one folder, each written aside, synced and renamed, so
that a reader finds either the old file or the new one. No model of transformers is built: an
export costs one pass over the weights.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.core.config import read_json
from pellucid.core.errors import CheckpointError, ConfigError
from pellucid.models.hf_config import PellucidConfig
from pellucid.models.transformer import Transformer

CONFIG, WEIGHTS = "config.json", "model.safetensors"

# Module paths, ours and transformers'; L stands for a layer's number.
MODULE_NAMES = (
    ("embed", "model.embed_tokens"),
    ("tied_mlp", "model.tied_mlp"),
    ("blocks.L.attn_norm", "model.layers.L.input_layernorm"),
    ("blocks.L.attn", "model.layers.L.self_attn"),
    ("blocks.L.ffn_norm", "model.layers.L.post_attention_layernorm"),
    ("blocks.L.ffn", "model.layers.L.mlp"),
    ("blocks.L", "model.layers.L"),
    ("norm", "model.norm"),
    ("unembed", "lm_head"),
)


def to_their_name(name: str) -> str:
    """``blocks.3.ffn.reads`` → ``model.layers.3.mlp.reads``, for tensors and module paths."""
    return _rename(name, MODULE_NAMES)


def to_our_name(name: str) -> str:
    """``model.layers.3.mlp.reads`` → ``blocks.3.ffn.reads``."""
    return _rename(name, [(ours, theirs) for theirs, ours in MODULE_NAMES])


def export_pretrained(model: Transformer, folder: Path, *, tokens_end: int | None) -> None:
    """Write ``config.json`` and ``model.safetensors`` so that transformers' Auto classes load them.

    That takes ``import pellucid.models.hf`` and nothing else. ``tokens_end`` is the token that
    ends a document, if there is one. Errors: a ``CheckpointError`` where the files cannot be
    written, for example on a full disk; the old files are then intact.
    """
    config = PellucidConfig.of(model.config, tokens_end=tokens_end)
    config.architectures = ["PellucidForCausalLM"]
    config.dtype = model.embed.weight.dtype
    state = {to_their_name(name): tensor for name, tensor in model.state_dict().items()}
    if model.config.tied_embeddings:
        del state["lm_head.weight"]
    contiguous = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    weights_aside, config_aside = folder / f".writing_{WEIGHTS}", folder / f".writing_{CONFIG}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, weights_aside, metadata={"format": "pt"})
        config_aside.write_text(config.to_json_string() + "\n", encoding="utf-8")
        for aside, name in ((weights_aside, WEIGHTS), (config_aside, CONFIG)):
            _sync(aside)
            aside.replace(folder / name)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            for aside in (weights_aside, config_aside):
                aside.unlink(missing_ok=True)
        raise CheckpointError(
            f"{folder / WEIGHTS}: cannot be written: {_one_line(error)}; what was there is "
            "intact: free some space or choose another folder"
        ) from None


def load_transformer(folder: Path) -> Transformer:
    """Our ``Transformer`` from a folder that ``export_pretrained`` or ``save_pretrained`` wrote.

    It comes on the CPU, in evaluation mode, in the dtypes of the file. Errors: a ``ConfigError``
    for ``config.json``, a ``CheckpointError`` for ``model.safetensors``.
    """
    record = read_json(folder / CONFIG)
    found = record.get("model_type") if isinstance(record, dict) else None
    if found != PellucidConfig.model_type:
        raise ConfigError(
            f"{folder / CONFIG}: model_type: expected 'pellucid', found {found!r}; other models "
            "are read with transformers and HuggingFaceHost"
        )
    config = PellucidConfig.from_dict(record).transformer_config(where=str(folder / CONFIG))
    state = {to_our_name(name): tensor for name, tensor in _read(folder / WEIGHTS).items()}
    if config.tied_embeddings and "embed.weight" in state:
        state["unembed.weight"] = state["embed.weight"]
    # The weights drawn here are replaced at once: a caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[]):
        model = Transformer(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: does not fit the model that {CONFIG} describes: "
            f"{_one_line(error)}"
        ) from None
    if config.tied_embeddings:
        model.unembed.weight = model.embed.weight
    return model.eval()


def _rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    parts = name.split(".")
    for old, new in pairs:
        pattern = old.split(".")
        if len(parts) < len(pattern):
            continue
        if all(_matches(part, want) for part, want in zip(parts, pattern)):
            layer = next((p for p, want in zip(parts, pattern) if want == "L"), "L")
            head = [layer if part == "L" else part for part in new.split(".")]
            return ".".join([*head, *parts[len(pattern) :]])
    return name


def _matches(part: str, want: str) -> bool:
    return part.isdigit() if want == "L" else part == want


def _read(path: Path) -> dict[str, Tensor]:
    try:
        # Copied: a file's tensors lie at any address, and matrix products promise equal bits only
        # at equal alignment.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; export the model again") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: expected safetensors, found a damaged or foreign file "
            f"({_one_line(error)}); export the model again"
        ) from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
