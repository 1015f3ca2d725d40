"""Attributes by name, and what a person may have meant."""

import difflib
from collections.abc import Sequence

from pipeline.errors import UserError


def attribute_number(name: str, known: Sequence[str]) -> int:
    """Place of an attribute among those of the set; `UserError` with the nearest names where it is none."""
    if name in known:
        return known.index(name)
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower().replace(" ", "_").replace("-", "_"), by_lower, n=3, cutoff=0.5)
    nearest = ", ".join(by_lower[found] for found in near) or ", ".join(known)
    raise UserError(f"the attribute must be one of the set's; got '{name}'. Did you mean: {nearest}?")
