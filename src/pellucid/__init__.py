"""Language models made of readable units, and one honest bench for reading them.

The names below load on first use, so that ``import pellucid`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.core.host import Edit, Host, Trace, edit_units
    from pellucid.core.unit import Code, PoolSpec, Site, UnitPool, UnitRecord

_HOMES = {
    "Code": "pellucid.core.unit",
    "Edit": "pellucid.core.host",
    "Host": "pellucid.core.host",
    "PoolSpec": "pellucid.core.unit",
    "Site": "pellucid.core.unit",
    "Trace": "pellucid.core.host",
    "UnitPool": "pellucid.core.unit",
    "UnitRecord": "pellucid.core.unit",
    "edit_units": "pellucid.core.host",
}

__all__ = [
    "Code",
    "Edit",
    "Host",
    "PoolSpec",
    "Site",
    "Trace",
    "UnitPool",
    "UnitRecord",
    "edit_units",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
