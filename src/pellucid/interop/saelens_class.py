"""Our own class in SAELens: any dictionary as one that ``SAE.load_from_disk`` opens.

The folder is SAELens' own, ``cfg.json`` and ``sae_weights.safetensors``, with the architecture
``pellucid``, the dictionary's parts under ``coder`` and its tensors as a checkpoint has them, so
that routers, solvers and sparse atoms stay what they are. ``register`` makes SAELens know it.
"""

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError, InteropError, MissingExtra
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig, build_coder
from pellucid.interop.converter import ReadOptions, chosen, name_of
from pellucid.interop.files import Fields, Tensors

ARCHITECTURE = "pellucid"
SCHEMA = 1
PREFIX = "coder."
UNCHANGED = ReadOptions()


def own_fields(coder: Coder) -> dict[str, Any]:
    """The fields of ``cfg.json`` that only our class has."""
    spec = coder.spec
    return {
        "d_out": spec.d_out,
        "coder": {
            "schema": SCHEMA,
            "name": spec.name,
            "reads": str(spec.reads),
            "writes": str(spec.writes),
            "config": to_dict(coder.config),
        },
    }


def own_tensors(coder: Coder) -> dict[str, Tensor]:
    """The tensors to keep: all but counters of firings and steps."""
    state = coder.state_dict()
    kept = {name: t for name, t in state.items() if t.is_floating_point() or "index" in name}
    return {f"{PREFIX}{name}": tensor for name, tensor in kept.items()}


def build_own(fields: Fields, options: ReadOptions = UNCHANGED) -> Coder:
    """The dictionary that ``cfg.json`` describes, its weights not yet loaded."""
    own = fields.object("coder")
    schema = own.size("schema")
    if schema > SCHEMA:
        raise InteropError(
            f"{own.where('schema')}: written in schema {schema}, this version reads up to "
            f"{SCHEMA}; upgrade pellucid"
        )
    # Our class takes rows as they are and subtracts by itself.
    for name in ("normalize_activations", "reshape_activations"):
        fields.choice(name, ("none",), "none")
    fields.find("apply_b_dec_to_input", bool)
    d_in, latents = fields.size("d_in"), fields.size("d_sae")
    where = f"{fields.path}: coder.config"
    config = from_dict(CoderConfig, own.take("config", dict), where=where)
    if config.latents != latents:
        raise InteropError(f"{where}: latents: expected d_sae = {latents}, found {config.latents}")
    sites = Site.parse(own.take("reads", str)), Site.parse(own.take("writes", str))
    reads, writes = chosen(*sites, options)
    if (reads == writes) != (sites[0] == sites[1]):
        raise InteropError(
            f"{own.where('reads')}: an SAE stays one, found sites {reads} and {writes}; name one "
            "site, or two for a transcoder"
        )
    try:
        coder = build_coder(
            config,
            name=name_of(options, own.take("name", str)),
            reads=reads,
            writes=writes,
            d_in=d_in,
            d_out=fields.size("d_out"),
        )
    except ConfigError as error:
        raise InteropError(f"{fields.path}: coder: {error}") from None
    return coder.eval()


def load_own(coder: Coder, tensors: Tensors) -> Coder:
    """The dictionary with the tensors of its file, in their dtype."""
    known = {name.removeprefix(PREFIX) for name in own_tensors(coder)}
    state = coder.state_dict()
    for name in known:
        state[name] = tensors.take(PREFIX + name, tuple(state[name].shape))
    coder.load_state_dict(state, assign=True)
    return coder.to(coder.bias.dtype)


def dense_code(coder: Coder, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n"]:
    """Every latent's value, most of them 0."""
    code = coder.activate(x)
    dense = code.value.new_zeros(*x.shape[:-1], coder.config.latents)
    return dense.scatter_add(-1, code.unit, code.value)


def dense_decode(coder: Coder, value: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d_out"]:
    """What latents of these values write, decoder bias included, skip path excluded."""
    rows = value.reshape(-1, value.shape[-1])
    written = (coder.decoder.rows().combine(rows) + coder.bias) / coder.out_scale
    return written.view(*value.shape[:-1], coder.spec.d_out)


def skip_path(coder: Coder, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
    """What the skip path adds, 0 where there is none."""
    return coder.rest(x) - coder.bias / coder.out_scale


def register() -> None:
    """Make ``sae_lens.SAE.load_from_disk`` open dictionaries written with our own class.

    Once is enough, twice does no harm. Errors: ``MissingExtra`` without SAELens.
    """
    try:
        from sae_lens.registry import SAE_CLASS_REGISTRY, register_sae_class
    except ImportError:
        raise MissingExtra("sae-lens", "interop", "opening dictionaries with SAELens") from None
    if ARCHITECTURE not in SAE_CLASS_REGISTRY:
        config_class = _config_class()
        register_sae_class(ARCHITECTURE, _sae_class(), config_class)


def _config_class() -> Any:
    """SAELens' fields, the written width, and our dictionary's parts."""
    from sae_lens import SAEConfig

    # No class statement: SAELens hands fields values of other types than it declares.
    return make_dataclass(
        "PellucidSAEConfig",
        [("d_out", int, 0), ("coder", dict, field(default_factory=dict))],
        bases=(SAEConfig,),
        namespace={"architecture": classmethod(lambda _: ARCHITECTURE)},
    )


def _sae_class() -> Any:
    from sae_lens import SAE

    class PellucidSAE(SAE):
        """A ``Coder`` under SAELens' names; ``W_enc`` and ``W_dec`` are its folded rows."""

        coder: Coder

        def initialize_weights(self) -> None:
            # On the CPU even where SAELens builds on meta: masks of sparse atoms must be real.
            self.coder = build_own(Fields(Path("cfg.json"), vars(self.cfg))).to(self.dtype)

        @property
        def W_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            return self.coder.read(_every(self.coder)).T

        @property
        def W_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            return self.coder.write(_every(self.coder))

        @property
        def b_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            return self.coder.bias / self.coder.out_scale

        def encode(self, x: Tensor) -> Tensor:
            rows = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
            return self.hook_sae_acts_post(dense_code(self.coder, rows))

        def decode(self, feature_acts: Tensor) -> Tensor:
            written = self.hook_sae_recons(dense_decode(self.coder, feature_acts))
            return self.reshape_fn_out(written, self.d_head)

        def forward(self, x: Tensor) -> Tensor:
            if self.coder.skip is None:
                return super().forward(x)
            written = self.decode(self.encode(x)) + skip_path(self.coder, x)
            return self.hook_sae_output(written)

        def fold_W_dec_norm(self) -> None:
            raise NotImplementedError("W_enc and W_dec are folded copies, not parameters")

        @torch.no_grad()
        def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
            for scale in (self.coder.in_scale, self.coder.out_scale):
                scale.mul_(scaling_factor)
            self.cfg.normalize_activations = "none"

        def fold_activation_whitening(
            self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
        ) -> None:
            raise NotImplementedError("whitening cannot be folded into every kind of atoms")

        def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
            for name in set(state_dict) - set(own_tensors(self.coder)):
                del state_dict[name]

        def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
            _complete(state_dict, self.state_dict())

    return PellucidSAE


def _complete(loaded: dict[str, Any], own: Mapping[str, Tensor]) -> None:
    """Counters, which no file holds, and whole numbers, of which SAELens makes floats."""
    for name, tensor in own.items():
        found = loaded.get(name, tensor)
        loaded[name] = found if tensor.is_floating_point() else found.to(tensor.dtype)


def _every(coder: Coder) -> Tensor:
    return torch.arange(coder.config.latents, device=coder.bias.device)
