"""What a dictionary costs per row and on disk: what comparisons are matched on.

    encoder MACs    dense n·d;  routed E·d + e·(n/E)·d;  sparse rows s in place of d;
                    a pursuit of K iterations K times as much, over the decoder's rows
    active          latents that a row evaluates: n, or e·n/E with a router

Biases, comparisons and the solver's small systems are not counted, nor is the reading again of k
survivors with a gradient, which only training does.
"""

from dataclasses import dataclass

from pellucid.dictionaries.atoms import ExpanderAtomsConfig
from pellucid.dictionaries.coder import Coder
from pellucid.dictionaries.pursuit import PursuitConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryCost:
    """``latents`` in all and ``active`` ones evaluated per row; multiply-adds of encoder, decoder
    and skip per row; ``stored_values``, all parameters; ``index_bytes`` of a sparse graph that is
    stored and not drawn again."""

    latents: int
    active: int
    encoder_macs: int
    decoder_macs: int
    skip_macs: int
    stored_values: int
    index_bytes: int


def dictionary_cost(coder: Coder) -> DictionaryCost:
    """The cost of a dictionary with the inference it is set to."""
    config, spec = coder.config, coder.spec
    n, k = config.latents, config.k or config.latents
    per_read, per_write = spec.d_in, spec.d_out
    if isinstance(config.atoms, ExpanderAtomsConfig):
        per_read = per_write = config.atoms.nonzeros
    router, active = config.router, n
    encoder = n * per_read
    if router is not None:
        active = n // router.experts * router.active
        encoder = router.experts * spec.d_in + active * per_read
    if isinstance(config.gate, PursuitConfig):
        encoder = k * n * per_write
    elif config.inference != "encoder":
        encoder = _iterations(coder, k) * n * per_write
    return DictionaryCost(
        latents=n,
        active=active,
        encoder_macs=encoder,
        decoder_macs=k * per_write,
        skip_macs=spec.d_in * spec.d_out if config.skip else 0,
        stored_values=sum(p.numel() for p in coder.parameters()),
        index_bytes=_index_bytes(coder),
    )


def _iterations(coder: Coder, k: int) -> int:
    """How often a solver correlates with all rows; ``refit`` encodes once like the encoder."""
    config = coder.config
    match config.inference:
        case "omp":
            return k
        case "gomp":
            return -(-k // config.solver_width)
        case _:
            return 1


def _index_bytes(coder: Coder) -> int:
    config = coder.config
    if not isinstance(config.atoms, ExpanderAtomsConfig) or not config.atoms.stored:
        return 0
    return sum(b.nbytes for name, b in coder.named_buffers() if name.endswith("index"))
