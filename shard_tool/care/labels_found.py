"""The labels that a foreign WebDataset turns out to have."""

from collections import Counter
from collections.abc import Sequence
from typing import Self

from pipeline.tar import labels_of

MOST_CLASSES = 1 << 20
"""Class numbers from here on are taken for something else, as database keys."""


class FoundLabels:
    """Counts the labels of samples; a set has labels if all of its samples have the same kind."""

    def __init__(self) -> None:
        self.positives: Counter[str] = Counter()
        """Samples that have each attribute, or are of each class."""
        self._samples = self._with_attributes = self._with_class = 0
        self._names: tuple[str, ...] | None = None
        self._alike = True
        self._highest = -1

    @classmethod
    def of_all(cls, parts: Sequence["FoundLabels"]) -> Self:
        """Those of several tars together."""
        total = cls()
        for part in parts:
            total.positives += part.positives
            total._samples += part._samples
            total._with_attributes += part._with_attributes
            total._with_class += part._with_class
            total._highest = max(total._highest, part._highest)
            total._alike = total._alike and part._alike
            if part._names is not None:
                total._compare(part._names)
        return total

    def add(self, data: bytes) -> None:
        """Count one sample, by its json or `cls` member."""
        self._samples += 1
        labels = labels_of(data) if data else {}
        if "attributes" in labels:
            self._with_attributes += 1
            self._compare(tuple(labels["attributes"]))
            self.positives.update(name for name, value in labels["attributes"].items() if value)
        elif "label" in labels:
            self._with_class += 1
            self._highest = max(self._highest, labels["label"])
            self.positives[str(labels["label"])] += 1

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes of all samples; empty where not all have the same."""
        return self._names or () if self._with_attributes == self._samples and self._alike else ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, which are their numbers; empty where not all samples have one."""
        if self._with_class < self._samples or self._highest >= MOST_CLASSES:
            return ()
        return tuple(map(str, range(self._highest + 1)))

    def describe(self) -> str:
        """What there is, or why there is none."""
        if self.attributes:
            return f"{len(self.attributes):,} attributes"
        if self.classes:
            return f"{len(self.classes):,} classes"
        if not self._with_attributes and not self._with_class:
            return "none"
        if self._with_attributes == self._samples:
            return "none: the samples have other attributes than each other"
        if self._with_class == self._samples:
            return f"none: class numbers must be below {MOST_CLASSES:,}; there is {self._highest:,}"
        return (
            f"none: only {self._with_attributes + self._with_class:,} of {self._samples:,} samples have the same kind"
        )

    def _compare(self, names: tuple[str, ...]) -> None:
        if self._names is None:
            self._names = names
        elif names != self._names and set(names) != set(self._names):
            self._alike = False
