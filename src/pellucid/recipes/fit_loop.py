"""One dictionary in the training loop: its objective, its optimiser's groups, its schedule."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from pellucid.data.activations import Rows
from pellucid.dictionaries import Coder, reaim
from pellucid.recipes.dictionary import Fit, FitRun, warm
from pellucid.train.dictionary import Reconstruction, forget_moments
from pellucid.train.loop import Loop
from pellucid.train.objective import ParamGroup
from pellucid.train.optim import build_optimizer

DOCUMENTS_NAMED = 8  # in an error message


def fit_optimizer(coder: Coder, fit: Fit, run: FitRun) -> torch.optim.AdamW:
    """Fused Adam without decay over all of a dictionary's parameters."""
    return build_optimizer(_groups(coder), run.optim(fit))


def fit_loop(
    coder: Coder,
    optimizer: torch.optim.Optimizer,
    fit: Fit,
    run: FitRun,
    batches: Callable[[int], Sequence[Rows]],
    device: str,
) -> Loop[Rows]:
    """The loop of one dictionary; ``batches(step)`` gives a step's rows."""
    objective = Reconstruction(
        losses_of=coder.losses,
        reads=coder.spec.reads,
        writes=coder.spec.writes,
        groups=_groups(coder),
        before=coder.before_step,
        after=coder.after_step,
        reaim=partial(reaim, coder, seed=run.seed),
        reaim_every=coder.config.reaim,
        forget=partial(forget_moments, optimizer, coder.unit_tables()),
    )
    return Loop(
        objective=objective,
        optimizer=optimizer,
        batches=batches,
        name_batch=_name_rows,
        tokens_per_step=run.batch,
        steps=run.steps,
        optim=run.optim(fit),
        schedule=warm(run.schedule, run.steps),
        device=device.partition(":")[0],
    )


def _groups(coder: Coder) -> list[ParamGroup]:
    trained = [p for p in coder.parameters() if p.requires_grad]
    return [ParamGroup(name="dictionary", params=trained, lr_scale=1.0, weight_decay=0.0)]


def _name_rows(rows: Rows) -> str:
    found = rows.document.unique().tolist()
    hidden = len(found) - DOCUMENTS_NAMED
    more = f" and {hidden} more" if hidden > 0 else ""
    return f"rows of documents {', '.join(map(str, found[:DOCUMENTS_NAMED]))}{more}"
