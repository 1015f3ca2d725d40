"""Datasets with images, as `datasets` writes them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def dataset_of(photos: Sequence[Path], *, names: bool = False, **columns: Any) -> Any:
    """The files of `photos` as a dataset with an image column; `names` keeps their file names.

    Further columns are a list of values, or a list and its feature.
    """
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": path.read_bytes(), "path": path.name if names else None} for path in photos]
    features = {"image": datasets.Image(decode=False)}
    data: dict[str, Any] = {"image": images}
    for name, value in columns.items():
        data[name], features[name] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def write_parquet(dataset: Any, path: Path, row_group: int = 7) -> Path:
    """A parquet file with row groups of `row_group` rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.to_parquet(str(path), batch_size=row_group)
    return path
