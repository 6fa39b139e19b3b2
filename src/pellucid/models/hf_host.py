"""A transformers causal language model as a ``Host``: plain forward hooks, nothing model-specific.

Sites are that model's own module paths, ``model.layers.7.mlp:in`` in most of them. Cost: one
forward pass in evaluation mode, without a cache.
"""

from collections.abc import Collection, Sequence

from jaxtyping import Int
from torch import Tensor, nn

from pellucid.core.host import Edit, Trace
from pellucid.core.unit import Site
from pellucid.models.evaluation import evaluating
from pellucid.models.hooks import logits_of, run_hooked, site_width


class HuggingFaceHost:
    """Runs ``model``, any causal LM of transformers, with edits and kept sites.

    Every run is in evaluation mode; the modes the model was in are restored. A site that the model
    does not have is an ``AddressError``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def width(self, site: Site) -> int:
        return site_width(self.model, site)

    def run(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        edits: Sequence[Edit] = (),
        keep: Collection[Site] = (),
    ) -> Trace:
        def call() -> Tensor:
            return logits_of(self.model(input_ids=tokens, use_cache=False))

        with evaluating(self.model):
            return run_hooked(self.model, call, edits=edits, keep=keep)
