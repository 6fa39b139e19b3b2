"""Edits and kept tensors on any module tree, through plain forward hooks.

A site's tensor is the module's first argument (``in``) or its output, the first item of a tuple
(``out``). Nothing is assumed about the model beyond that, so the same code serves ours and every
model of Hugging Face.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.errors import AddressError, nearest
from pellucid.core.host import Edit, Trace
from pellucid.core.unit import Site
from pellucid.models.evaluation import evaluating


def run_hooked(
    model: nn.Module,
    call: Callable[[], Tensor],
    *,
    edits: Sequence[Edit] = (),
    keep: Collection[Site] = (),
) -> Trace:
    """Run ``call`` (a forward pass of ``model`` that returns logits) with edits and keeps.

    Where the pass reaches a module several times, edits apply at every visit, and what is kept is
    the tensor of the last.

    Errors: an ``AddressError`` for a site the model does not have (nearest offered), for one that
    the pass never reached, and for an edit that writes before it has read.
    """
    sites = _Sites(edits=edits, keep=frozenset(keep))
    touched = dict.fromkeys(
        [site for edit in edits for site in (edit.reads, edit.writes)] + list(keep)
    )
    with ExitStack() as stack:
        for site in touched:
            stack.callback(_attach(module_at(model, site), site, sites.visit).remove)
        logits = call()
    for site in touched:
        if site not in sites.seen:
            raise AddressError(f"site {site}: this forward pass never reached the module")
    return Trace(logits=logits, kept={site: sites.left[site] for site in keep})


def module_at(model: nn.Module, site: Site) -> nn.Module:
    """The module a site names; an unknown path is an ``AddressError`` with the nearest one."""
    modules = dict(model.named_modules())
    if site.module not in modules:
        names = [name for name in modules if name]
        raise AddressError(
            f"site {site}: the model has no module {site.module!r}; "
            f"{nearest(site.module, _closest(site.module, names))}"
        )
    return modules[site.module]


@torch.no_grad()
def site_width(model: nn.Module, site: Site) -> int:
    """The last axis of the tensor at ``site``, found by running two tokens in evaluation mode."""
    device = next(model.parameters()).device
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device)
    with evaluating(model):
        trace = run_hooked(model, lambda: logits_of(model(tokens)), keep=(site,))
    return trace.kept[site].shape[-1]


def logits_of(output: Any) -> Tensor:
    """The logits tensor of a model's output, plain or wrapped as transformers wraps it."""
    return output if isinstance(output, Tensor) else output.logits


@dataclass
class _Sites:
    """What one pass has seen: the tensors as they came to a site and as they left it."""

    edits: Sequence[Edit]
    keep: frozenset[Site]
    seen: set[Site] = field(default_factory=set)
    left: dict[Site, Tensor] = field(default_factory=dict)

    def visit(self, site: Site, tensor: Tensor) -> Tensor:
        """Apply the edits that write at ``site``, in order, and remember what leaves it."""
        arrived = tensor
        for edit in self.edits:
            if edit.writes != site:
                continue
            if edit.reads != site and edit.reads not in self.left:
                raise AddressError(
                    f"an edit writes at {site} before the pass reaches {edit.reads}, which it "
                    "reads; name a site that comes earlier"
                )
            x = arrived if edit.reads == site else self.left[edit.reads]
            tensor = edit.apply(x, tensor)
        self.seen.add(site)
        self.left[site] = tensor
        return tensor


def _attach(
    module: nn.Module, site: Site, visit: Callable[[Site, Tensor], Tensor]
) -> torch.utils.hooks.RemovableHandle:
    if site.port == "out":

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return visit(site, output)
            first = visit(site, output[0])
            if isinstance(output, tuple):
                return (first, *output[1:])
            return replace(output, **{next(iter(output)): first})

        return module.register_forward_hook(after)

    def before(
        _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (visit(site, args[0]), *args[1:]), dict(kwargs)
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: visit(site, kwargs[name])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _closest(name: str, options: Sequence[str]) -> list[str]:
    """The module paths of the same depth first, so that a long list stays readable."""
    depth = name.count(".")
    same = [option for option in options if option.count(".") == depth]
    return same or list(options)
