"""A language model by name as a host to read from: a run of ours, or any causal LM of transformers.

Its identity goes into every cache and dictionary made from it, so that another model's are refused
by name.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from pellucid.core.errors import AddressError, ConfigError, nearest
from pellucid.core.host import Host
from pellucid.core.unit import Site
from pellucid.data.tokenizer import TextTokenizer, load_tokenizer
from pellucid.recipes.folder import is_run
from pellucid.recipes.load import load_run

HASHED = 1 << 20  # values of a tensor that are hashed at a time
ROOM = 1.1  # of the weights: what loading takes beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHost:
    """A model ready to run: ``identity`` names it, ``context`` is the longest window it takes."""

    host: Host
    model: nn.Module
    tokenizer: TextTokenizer
    context: int
    identity: dict[str, str]


def open_host(name: str, *, device: str = "cpu") -> OpenHost:
    """Load a run folder, or the name or folder of a Hugging Face causal LM, in evaluation mode.

    Errors: a ``ConfigError`` for what is neither, and for a model that does not fit in memory.
    """
    if is_run(Path(name)):
        run = load_run(Path(name), device=device)
        return OpenHost(
            host=run.model,
            model=run.model,
            tokenizer=run.tokenizer,
            context=run.config.model.context,
            identity=_identity("run", name, run.model),
        )
    from pellucid.models.hf import HuggingFaceHost

    model = load_transformers(name).to(device).eval()
    return OpenHost(
        host=HuggingFaceHost(model),
        model=model,
        tokenizer=load_tokenizer(name if Path(name).is_dir() else f"hub:{name}"),
        context=int(getattr(model.config, "max_position_embeddings", 0) or 2048),
        identity=_identity("huggingface", name, model),
    )


def expand_sites(names: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """Sites with their wildcards expanded: ``model.layers.*.mlp:out``, in the model's order.

    Errors: an ``AddressError`` for a site that is none, or that matches no module (nearest given).
    """
    modules = [name for name, _ in model.named_modules() if name]
    found: dict[str, None] = {}
    for name in names:
        site = Site.parse(name)
        matched = [m for m in modules if m == site.module or fnmatchcase(m, site.module)]
        # A star stands for one part of a path, as layers are numbered.
        matched = [m for m in matched if m.count(".") == site.module.count(".")]
        if not matched:
            raise AddressError(
                f"site {name}: the model has no module {site.module!r}; "
                f"{nearest(site.module, _same_depth(site.module, modules))}"
            )
        found |= dict.fromkeys(f"{module}:{site.port}" for module in matched)
    return tuple(found)


def _same_depth(name: str, modules: Sequence[str]) -> Iterable[str]:
    depth = name.count(".")
    return [module for module in modules if module.count(".") == depth] or modules


def load_transformers(name: str) -> nn.Module:
    """A causal language model of transformers by its name or folder, our own exports included.

    Errors: a ``ConfigError`` for what is none, and for one that does not fit in memory.
    """
    # Half of the time to start, and it lets transformers know our own exported models.
    from transformers import AutoConfig, AutoModelForCausalLM

    import pellucid.models.hf  # noqa: F401

    try:
        config = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config)
        _check_memory(name, sum(p.numel() * p.element_size() for p in shell.parameters()))
        return AutoModelForCausalLM.from_pretrained(name)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name!r}: neither a run folder nor a model that transformers can load: {reason}"
        ) from None


def _check_memory(name: str, needed: int) -> None:
    free = _free_memory()
    if needed * ROOM > free:
        raise ConfigError(
            f"{name!r}: needs {needed * ROOM / 1e9:.1f} GB for its weights, {free / 1e9:.1f} GB "
            "are free; close other programs, or choose a smaller model"
        )


def _free_memory() -> int:
    """Bytes that programs may still take, caches of the system included where that is known."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _identity(kind: str, name: str, model: nn.Module) -> dict[str, str]:
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        for part in tensor.detach().reshape(-1).split(HASHED):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {"kind": kind, "name": name, "weights": digest.hexdigest()}
