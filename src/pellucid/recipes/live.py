"""The share of a model's units that speak at least once on given text."""

from collections.abc import Mapping, Sequence

import torch

from pellucid.core.host import Host
from pellucid.core.unit import UnitPool
from pellucid.data.packing import Batch
from pellucid.explore.tally import LARGE, LIMIT, is_text

# Codes are made for so many rows at a time that one stays below 64 MB.
CODE_ENTRIES = 1 << 22


@torch.no_grad()
def live_share(
    host: Host,
    pools: Mapping[str, UnitPool],
    batches: Sequence[Batch],
    device: str,
    *,
    end_of_text: int,
) -> float:
    """Units with a non-zero value on some token of a document, over all units of all pools."""
    seen = {
        name: torch.zeros(pool.spec.num_units, dtype=torch.bool) for name, pool in pools.items()
    }
    for batch in batches:
        text = is_text(batch, end_of_text).flatten()
        trace = host.run(batch.tokens.to(device), keep={pool.spec.reads for pool in pools.values()})
        for name, pool in pools.items():
            rows = trace.kept[pool.spec.reads].flatten(0, -2)[text.to(device)]
            step = max(1, CODE_ENTRIES // pool.spec.num_units)
            for chunk in rows.split(max(step, 64)):
                limit = LIMIT if pool.spec.num_units > LARGE else None
                code = pool.activate(chunk, limit=limit)
                seen[name][code.unit[code.value != 0].cpu()] = True
    return sum(int(on.sum()) for on in seen.values()) / sum(on.numel() for on in seen.values())
