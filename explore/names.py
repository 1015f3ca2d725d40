"""Attributes by name, and what a person may have meant."""

import difflib
from collections.abc import Sequence

from pipeline.errors import UserError

_NEAREST = 3


def attribute_number(name: str, known: Sequence[str]) -> int:
    """Place of an attribute among those of the set; `UserError` with the nearest names where it is none."""
    if name in known:
        return known.index(name)
    wanted = name.lower().replace(" ", "_").replace("-", "_")
    by_lower = {other.lower(): other for other in known}
    containing = [other for other in by_lower if wanted and wanted in other]
    near = containing + difflib.get_close_matches(wanted, by_lower, n=_NEAREST, cutoff=0.5)
    nearest = ", ".join(by_lower[found] for found in list(dict.fromkeys(near))[:_NEAREST]) or ", ".join(known)
    raise UserError(f"the attribute must be one of the set's; got '{name}'. Did you mean: {nearest}?")
