"""What other libraries make of a set: every key, image and label that they read, beside those that we read.

That a set is a plain WebDataset is what the format promises; the libraries themselves are asked.
"""

import contextlib
import glob
import importlib.util
import io
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import LeanstreamError, UserError
from pipeline.format import Shard, ShardSet
from pipeline.shards.shard import ShardFile, load_index
from pipeline.tar import IMAGE_SUFFIXES, labels_of
from shard_tool.display import Report

LIBRARIES = {"webdataset": "webdataset", "datasets": "'leanstream[datasets]'"}
"""Those that are asked, and what pip calls them."""

_Sample = tuple[str, str, dict[str, Any]]
"""Name of the tar, key, and what a library makes of the members, by suffix in lower case."""


class Problem(NamedTuple):
    """One thing that is not as it was written, or that others do not read so."""

    file: str
    """Name within the set's folder."""
    key: str | None
    """The sample that it concerns; None where it concerns the file."""
    problem: str
    """What comes after that name: `has another crc32 than its index says`."""


def missing_libraries() -> list[str]:
    """Those of `LIBRARIES` that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def check_installed() -> None:
    """Raise `UserError` unless all `LIBRARIES` are installed."""
    for name in missing_libraries():
        raise UserError(
            f"--readers must have {' and '.join(LIBRARIES)}; got no {name}. Install it: pip install {LIBRARIES[name]}."
        )


def compare_readers(shards: ShardSet, names: Iterable[str], libraries: Iterable[str], tick: Report) -> list[Problem]:
    """What `libraries` read otherwise than we do, of shards of these names, which must be whole.

    `tick` is told of samples and problems as they come.
    """
    wanted, found = set(names), list[Problem]()
    for library, split in itertools.product(libraries, shards.splits.values()):
        chosen = {shard.name: shard for shard in split if shard.name in wanted}
        for problem in _compare(shards, chosen, library, tick) if chosen else ():
            found.append(problem)
            tick(0, 1)
    return found


def _compare(shards: ShardSet, left: dict[str, Shard], library: str, tick: Report) -> Iterator[Problem]:
    read = {"webdataset": _read_by_webdataset, "datasets": _read_by_datasets}[library]
    name = next(iter(left))
    try:
        found = read([str(shards.folder / f"{name}.tar") for name in left])
        for name, samples in itertools.groupby(found, key=lambda sample: sample[0]):
            shard = left.pop(name)
            yield from _compare_shard(shards, shard, library, samples)
            tick(shard.samples, 0)
    except LeanstreamError:
        raise
    except Exception as error:  # Of any kind: it is what a library does with a file that it cannot read.
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield Problem(f"{name}.tar", None, f"stops {library}, or the tar after it does: {what}")
        return
    yield from (Problem(f"{name}.tar", None, f"has no sample for {library}") for name in left)


def _compare_shard(shards: ShardSet, shard: Shard, library: str, samples: Iterable[_Sample]) -> Iterator[Problem]:
    tar, file = f"{shard.name}.tar", ShardFile(shards, shard)
    records = load_index(shards.folder / tar, shard, shards.image_member).records
    rows = {file.key(row): row for row in range(shard.samples)}

    def content(row: int, what: str) -> bytes:
        return os.pread(file.descriptor, int(records[row][f"{what}_size"]), int(records[row][f"{what}_offset"]))

    for _, key, members in samples:
        row = rows.pop(key, None)
        if row is None:
            yield Problem(tar, key, f"is a sample to {library} alone")
            continue
        images = [
            value
            for suffix, value in members.items()
            if value is not None and (suffix.rpartition(".")[2] in IMAGE_SUFFIXES or suffix == shards.image_member)
        ]
        if not any(_is_image(value, content(row, "image")) for value in images):
            yield Problem(tar, key, f"has another image for {library}")
        if not _has_labels(members, content(row, "json")):
            yield Problem(tar, key, f"has another json for {library}")
    yield from (Problem(tar, key, f"is skipped by {library}") for key in rows)


def _is_image(theirs: Any, ours: bytes) -> bool:
    """Whether a library has the same image: its bytes or, of an `.npy`, its numbers."""
    theirs = theirs["bytes"] if isinstance(theirs, dict) else theirs
    if isinstance(theirs, bytes):
        return theirs == ours
    return np.array_equal(np.asarray(theirs), np.load(io.BytesIO(ours), allow_pickle=False))


def _has_labels(members: dict[str, Any], ours: bytes) -> bool:
    """Whether a library has the same json or `cls`: its bytes or, where it has decoded them, the labels."""
    theirs = [members[suffix] for suffix in ("json", "cls") if members.get(suffix) is not None]
    if not ours or any(isinstance(one, bytes) for one in theirs):
        return not ours or ours in theirs
    said = labels_of(ours)
    for name, label in said.items():
        found = [one.get(name) if isinstance(one, dict) else one for one in theirs]
        # It fills up what other samples have besides.
        plain = [{k: v for k, v in one.items() if v is not None} if isinstance(one, dict) else one for one in found]
        if label not in plain:
            return False
    return True


def _read_by_webdataset(tars: list[str]) -> Iterator[_Sample]:
    from webdataset import tariterators  # It loads torch.

    def streams() -> Iterator[dict[str, Any]]:
        """Opened here: the library's own opener takes some paths for URLs, and leaves files open."""
        for tar in tars:
            with open(tar, "rb") as stream:
                yield {"url": tar, "stream": stream}

    for members in tariterators.group_by_keys(tariterators.tar_file_expander(streams())):
        yield Path(members["__url__"]).stem, members["__key__"], members


def _read_by_datasets(tars: list[str]) -> Iterator[_Sample]:
    import datasets

    with tempfile.TemporaryDirectory(prefix="leanstream-") as cache, _kept_at_home(datasets.config, Path(cache)):
        files = [glob.escape(tar) for tar in tars]
        dataset = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True, cache_dir=cache)
        for name, feature in (dataset.features or {}).items():
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        for members in dataset:
            named = {name.lower(): value for name, value in members.items()}
            yield Path(named["__url__"]).stem, named["__key__"], named


@contextlib.contextmanager
def _kept_at_home(config: Any, cache: Path) -> Iterator[None]:
    """Nothing of `datasets` goes to the network, or to the user's cache."""
    wanted: dict[str, Any] = {"HF_HUB_OFFLINE": True, "HF_DATASETS_OFFLINE": True, "HF_UPDATE_DOWNLOAD_COUNTS": False}
    wanted |= {"HF_MODULES_CACHE": cache / "modules", "HF_DATASETS_CACHE": cache}
    before = {name: value for name, value in vars(config).items() if name in wanted}
    vars(config).update({name: wanted[name] for name in before})
    try:
        yield
    finally:
        vars(config).update(before)
