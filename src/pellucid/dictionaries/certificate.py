"""Whether a sparse dictionary could be identified at its k, as figures beside its results.

No trained dictionary that was published has ratios below 1, so nothing is claimed from them; see
``ops/expander/diagnostics.py``.
"""

from dataclasses import asdict

from pellucid.dictionaries.atoms import ExpanderAtoms
from pellucid.dictionaries.coder import Coder
from pellucid.ops.expander import diagnose


def certificate_figures(coder: Coder, *, seed: int = 0) -> dict[str, float]:
    """Flatness β, expansions ε and the two ratios by name; nothing for rows that are not sparse."""
    if not isinstance(coder.decoder, ExpanderAtoms) or coder.config.k is None:
        return {}
    rows = coder.decoder.rows()
    found = asdict(
        diagnose(rows.values.detach(), rows.index, rows.width, coder.config.k, seed=seed)
    )
    flat = found.pop("flatness")
    found |= {"beta": flat["largest"], "beta_median": flat["median"], "beta_p95": flat["p95"]}
    return {name: value for name, value in found.items() if value is not None and name != "k"}
