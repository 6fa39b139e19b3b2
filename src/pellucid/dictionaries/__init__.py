"""Every dictionary that can be fitted to a site, as a frozen config of parts.

To add one: a gate, atoms or router in its file where a part is missing, and one line in
``DICTIONARIES``. The laws in ``tests/test_dictionary_laws.py`` then run over it.

Names that end in ``-authors`` are parts and losses as the papers' own trainers have them, in raw
sums and with their quirks, to be compared with; the plain names share one scale of losses.
"""

from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.coder import Coder, build_coder
from pellucid.dictionaries.config import CoderConfig
from pellucid.dictionaries.gates import BatchTopKConfig, GroupmaxConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.router import RouterConfig
from pellucid.dictionaries.settle import reaim, settle
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig

HALVES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_SWITCH = RouterConfig(experts=16, active=1, gate="p")
_SCALE = RouterConfig(experts=16, active=4, gate="renorm", lowpass="learned")
_EXPANDER = CoderConfig(
    atoms=ExpanderAtomsConfig(), gate=TopKConfig(sign="signed"), auxk=0.0, reaim=1000
)

DICTIONARIES: dict[str, CoderConfig] = {
    "relu": CoderConfig(gate=ReLUConfig(), atoms=DenseAtomsConfig(norm="free"), auxk=0.0),
    "gated": CoderConfig(gate=GatedConfig(), auxk=0.0),
    "topk": CoderConfig(),
    "batchtopk": CoderConfig(gate=BatchTopKConfig()),
    "jumprelu": CoderConfig(gate=JumpReLUConfig(), auxk=0.0),
    "matryoshka": CoderConfig(gate=BatchTopKConfig(), prefixes=HALVES),
    "abstopk": CoderConfig(gate=TopKConfig(sign="abs")),
    "groupmax": CoderConfig(gate=GroupmaxConfig()),
    "pursuit": CoderConfig(
        gate=PursuitConfig(), atoms=DenseAtomsConfig(tied=True), auxk=0.0, reaim=1000
    ),
    "switch": CoderConfig(router=_SWITCH),
    "scale": CoderConfig(router=_SCALE),
    "switch-authors": CoderConfig(
        router=RouterConfig(
            experts=16, active=1, gate="p", fraction="top1", balance=3.0, sums=True
        ),
        reduction="sum",
        normalise=False,
    ),
    "scale-authors": CoderConfig(
        router=RouterConfig(
            experts=16,
            active=4,
            gate="softmax_of_p",
            lowpass="learned",
            fraction="top1",
            balance=3.0,
            sums=True,
            bias=False,
            quirks=True,
        ),
        atoms=DenseAtomsConfig(norm="coordinate"),
        auxk=0.0,
        reduction="sum",
        normalise=False,
    ),
    "expander": _EXPANDER,
    "expander-authors": CoderConfig(
        atoms=ExpanderAtomsConfig(mask="authors"),
        gate=TopKConfig(sign="signed"),
        auxk=0.0,
        reaim=1000,
        reduction="sum",
        normalise=False,
        center="zero",
    ),
    "expander-switch": CoderConfig(
        atoms=ExpanderAtomsConfig(), router=_SWITCH, auxk=0.0, reaim=1000
    ),
    "expander-scale": CoderConfig(atoms=ExpanderAtomsConfig(), router=_SCALE, auxk=0.0, reaim=1000),
}

__all__ = ["DICTIONARIES", "Coder", "CoderConfig", "build_coder", "reaim", "settle"]
