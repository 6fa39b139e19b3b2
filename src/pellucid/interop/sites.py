"""One place in a model under three names: ours, a Hugging Face model's, TransformerLens'.

    blocks.L:in, :out       model.layers.L:in, :out       blocks.L.hook_resid_pre, _post
    blocks.L.ffn:in         model.layers.L.mlp:in         blocks.L.mlp.hook_in
    blocks.L.ffn:out        model.layers.L.mlp:out        blocks.L.hook_mlp_out

A site is any module's input or output; only these have a name in all three. A Hugging Face model
may keep its layers elsewhere (``gpt_neox.layers``, ``transformer.h``), so reading a hook's name
takes the path of the list of layers; ``blocks`` is that of a model of ours.
"""

import re
from typing import Literal

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site

OWN_LAYERS, LAYERS = "blocks", "model.layers"

# Module paths inside a model of ours and inside its Hugging Face form; L is a layer's number.
MODULES = (
    ("embed", "model.embed_tokens"),
    ("blocks.L.attn_norm", "model.layers.L.input_layernorm"),
    ("blocks.L.attn", "model.layers.L.self_attn"),
    ("blocks.L.ffn_norm", "model.layers.L.post_attention_layernorm"),
    ("blocks.L.ffn", "model.layers.L.mlp"),
    ("blocks.L", "model.layers.L"),
    ("norm", "model.norm"),
    ("unembed", "lm_head"),
)

# The part of a block, the port, and TransformerLens' name in that block.
HOOKS: tuple[tuple[str, Literal["in", "out"], str], ...] = (
    ("", "in", "hook_resid_pre"),
    ("", "out", "hook_resid_post"),
    ("mlp", "in", "mlp.hook_in"),
    ("mlp", "out", "hook_mlp_out"),
)
SYNONYMS = {"mlp.hook_out": "hook_mlp_out"}
BEFORE_GAIN = "ln2.hook_normalized"


def to_hugging_face(site: Site) -> Site:
    """``blocks.3.ffn:in`` → ``model.layers.3.mlp:in``; other sites stay as they are."""
    return Site(module=_renamed(site.module, MODULES), port=site.port)


def to_own(site: Site) -> Site:
    """``model.layers.3.mlp:in`` → ``blocks.3.ffn:in``; other sites stay as they are."""
    return Site(module=_renamed(site.module, [(t, o) for o, t in MODULES]), port=site.port)


def hook_of(site: Site) -> str | None:
    """TransformerLens' name for a site of ours or of a Hugging Face model, if it has one."""
    found = re.fullmatch(r"(?:[\w.]*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(\w+))?", site.module)
    if found is None:
        return None
    part = {"ffn": "mlp", None: ""}.get(found[2], found[2])
    names = [name for of, port, name in HOOKS if (of, port) == (part, site.port)]
    return f"blocks.{found[1]}.{names[0]}" if names else None


def site_of_hook(name: str, *, layers: str, norm_folded: bool, where: str) -> Site:
    """The site a hook's name stands for: TransformerLens' name, or a module path (its output).

    ``layers`` is the path of the model's list of layers. ``blocks.L.ln2.hook_normalized`` precedes
    the norm's gain, so it is the MLP's input only if ``norm_folded`` says the gain was folded into
    the MLP. Errors: an ``InteropError`` for a hook that is neither.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.([\w.]*hook_[\w.]+)", name)
    if found is None:
        if re.fullmatch(r"\w+(\.\w+)*", name) and "hook_" not in name:
            return Site(module=name, port="out")
        raise InteropError(f"{where}: expected a hook or a module path, found {name!r}")
    layer, hook = int(found[1]), SYNONYMS.get(found[2], found[2])
    if hook == BEFORE_GAIN:
        if not norm_folded:
            raise InteropError(
                f"{where}: {name} stands before the norm's gain, so it is no module's input; add "
                "--norm-folded if the gain was folded into the MLP, or name the site"
            )
        hook = "mlp.hook_in"
    for part, port, known in HOOKS:
        if known == hook:
            return Site(module=layer_path(layers, layer, part), port=port)
    raise InteropError(
        f"{where}: expected a hook named {', '.join(known for *_, known in HOOKS)} or a module "
        f"path, found {name!r}; name the site yourself"
    )


def layer_path(layers: str, layer: int, part: str = "") -> str:
    """``model.layers.3.mlp``, or ``blocks.3.ffn`` where ``layers`` is that of a model of ours."""
    if layers == OWN_LAYERS and part == "mlp":
        part = "ffn"
    return f"{layers}.{layer}.{part}" if part else f"{layers}.{layer}"


def layer_of(site: Site) -> int | None:
    """The layer's number in a site's module path, if there is one."""
    found = re.search(r"(?:layers|h|blocks)\.(\d+)(?:\.|$)", site.module)
    return int(found[1]) if found else None


def _renamed(path: str, pairs: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        pattern = re.escape(old).replace("L", r"(?P<L>\d+)", 1) if "L" in old else re.escape(old)
        found = re.fullmatch(rf"{pattern}(?P<rest>\..+)?", path)
        if found:
            layer = found.groupdict().get("L") or "L"
            return new.replace("L", layer) + (found["rest"] or "")
    return path
