"""`index`: a WebDataset from anywhere, whose images are squares of one size, becomes seekable where it lies.

    faces/000000.tar ──┐                                            ┌──> faces/000000.index
    faces/000001.tar ──┴─ one reading: hashes, headers, labels ─────┴──> faces/000001.index
                                                                    └──> faces/shardset.json, last

No tar is written to, and no file is replaced that is not ours.
"""

import fnmatch
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import write_atomic
from pipeline.format import INDEX_MAGIC, SHARDSET_FILE, SPLITS, SUFFIX, Index, Shard, ShardSet, Split
from pipeline.shards.picture import Header, read_header
from pipeline.tar import Sample, scan_tar
from shard_tool.care.contents import megabytes
from shard_tool.care.labels_found import FoundLabels
from shard_tool.display import show_bytes
from shard_tool.image.photo import quiet_pillow

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2|txz|tzst)$", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The first word of a tar's name, and its split."""
_REPORT_BYTES = 8 << 20
"""Progress is shown in steps of this."""


@dataclass(frozen=True)
class _Scanned:
    """What one tar holds."""

    shard: Shard
    index: Index
    header: Header
    """Of its first image."""
    first_key: str
    encodings: Counter[str]
    suffixes: Counter[str]
    """Of the images."""
    labels: FoundLabels


def index_folder(folder: Path, *, image: str = "", splits: Sequence[str] = (), threads: int, quiet: bool) -> None:
    """Write an `.index` beside every tar in `folder`, and a `shardset.json`; prints a summary.

    Args:
        folder: where the tars lie side by side.
        image: suffix of the member that is the image, where samples hold several.
        splits: `NAME=GLOB` each; a tar whose name matches GLOB belongs to NAME. Others go by the start of their name.
        threads: tars that are read at the same time.
        quiet: print nothing.

    Raises:
        UserError: for a folder that cannot be indexed, with the sample that is in the way.
        ShardError: where a tar is damaged.
    """
    started = time.monotonic()
    known = _known(folder)
    if known is not None and not _was_indexed(known):
        if not quiet:
            print(f"{folder} is a shard set that make-shards wrote: it has its indexes.")
        return
    if known is not None:  # As it was indexed, unless told otherwise.
        image = image or known.image_member
        splits = splits or known.parts[0]["indexed"]["splits"]
    image = image.lower()
    names = _tars(folder)
    split_of = _splits(names, splits)
    _keep_strangers(folder, names)
    total = sum((folder / f"{name}.tar").stat().st_size for name in names)
    with show_bytes("indexing", total, quiet=quiet) as report:
        scanned = _scan(folder, names, image, threads, report)
    _check_headers(folder, scanned)
    shards = _describe(folder, scanned, split_of, image, splits)
    if known is not None:
        _compare(known, shards)
    written = sum(_write_index(folder / f"{tar.shard.name}.index", tar.index) for tar in scanned)
    if known is None:
        shards.save()
    if not quiet:
        again = f"; {written} lost or damaged indexes written again" if written else ""
        print(
            "\n".join(_summary(shards, scanned, time.monotonic() - started))
            if known is None
            else f"{folder} is indexed already, and its {len(names):,} tars have not changed{again}."
        )


def _known(folder: Path) -> ShardSet | None:
    if not folder.is_dir():
        raise UserError(f"{folder} must be a folder of tars; got {'a file' if folder.exists() else 'no such folder'}.")
    return ShardSet.open(folder) if (folder / SHARDSET_FILE).exists() else None


def _was_indexed(shards: ShardSet) -> bool:
    return bool(shards.parts) and "indexed" in shards.parts[0]


def _tars(folder: Path) -> list[str]:
    """Names, without extension, of the tars in `folder`, in order."""
    files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    remedy = f"Or make a set of your own from it: shard_tool make-shards {folder} --size 64"
    for name in files:
        if _COMPRESSED.search(name) or (name.endswith(".tar") and _begins_with(folder / name, _GZIP)):
            raise UserError(
                f"the tars must not be compressed, for nothing in them could be sought; got {name}. "
                f"Unpack them (gunzip). {remedy}."
            )
    names = [name.removesuffix(".tar") for name in files if name.endswith(".tar")]
    for parent, _, inner in os.walk(folder):
        deep = next((name for name in inner if name.endswith(".tar")), None)
        if deep is not None and Path(parent) != folder:
            raise UserError(
                f"the tars must lie side by side in {folder}; got {Path(parent, deep).relative_to(folder)}. "
                f"Index each folder by itself. {remedy}."
            )
    if not names:
        raise UserError(f"{folder} must hold .tar files; got none. {remedy}.")
    return names


def _splits(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """The split of each tar."""
    chosen: dict[str, str] = {}
    for rule in wanted:
        split, equals, pattern = rule.partition("=")
        if split not in SPLITS or not equals:
            raise UserError(f"a split must read NAME=GLOB, NAME one of {', '.join(SPLITS)}; got '{rule}'. Correct it.")
        matching = [name for name in names if fnmatch.fnmatchcase(f"{name}.tar", pattern) or name == pattern]
        if not matching:
            raise UserError(f"the pattern of a split must match tars; got none for '{rule}'. Correct it.")
        for name in matching:
            if chosen.setdefault(name, split) != split:
                raise UserError(f"a tar must be of one split; got {name}.tar for '{rule}' too. Correct the patterns.")
    return {name: chosen.get(name) or _split_by_name(name) for name in names}


def _split_by_name(name: str) -> str:
    word = re.match(r"[a-z]*", name.lower())
    return _SPLIT_OF.get(word.group() if word else "", "train")


def _keep_strangers(folder: Path, names: Sequence[str]) -> None:
    for path in (folder / f"{name}.index" for name in names):
        if path.exists() and not _begins_with(path, INDEX_MAGIC):
            raise UserError(f"{path} must be an index of leanstream; got another file. Move it away.")


def _begins_with(path: Path, start: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def _scan(
    folder: Path, names: Sequence[str], image: str, threads: int, report: Callable[[int], None]
) -> list[_Scanned]:
    stop = threading.Event()
    with quiet_pillow(), ThreadPoolExecutor(threads, "index") as executor:
        try:
            return list(executor.map(lambda name: _Scan(folder, name, stop, report).run(image), names))
        except BaseException:
            stop.set()
            executor.shutdown(cancel_futures=True)
            raise


class _Stopped(Exception):  # noqa: N818 (nobody sees it)
    pass


class _Scan:
    """The reading of one tar; `run` does it, once."""

    def __init__(self, folder: Path, name: str, stop: threading.Event, report: Callable[[int], None]) -> None:
        self._folder, self._name, self._stop, self._report = folder, name, stop, report
        self._path = folder / f"{name}.tar"
        self._first: tuple[str, Header] | None = None
        self._encodings: Counter[str] = Counter()
        self._suffixes: Counter[str] = Counter()
        self._labels = FoundLabels()
        self._seen = self._reported = 0

    def run(self, image: str) -> _Scanned:
        index = scan_tar(self._path, image, self._see)
        if self._first is None:
            raise UserError(f"{self._path} must hold samples; got none. Move it away.")
        self._report(index.tar_bytes - self._reported)
        shard = Shard(self._name, len(index.records), index.tar_bytes, index.tar_sha256)
        key, header = self._first
        return _Scanned(shard, index, header, key, self._encodings, self._suffixes, self._labels)

    def _see(self, sample: Sample) -> None:
        if self._stop.is_set():
            raise _Stopped
        try:
            header = read_header(sample.image)
        except ValueError as error:
            raise _refusal(
                self._folder,
                self._path,
                sample.key,
                "hold a JPEG, PNG, WebP or .npy image of 8-bit RGB",
                str(error),
                64,
            ) from None
        if self._first is None:
            self._first = sample.key, header
        _check_size(self._folder, self._path, sample.key, header, self._first)
        self._encodings[header.encoding] += 1
        self._suffixes[sample.suffix] += 1
        self._labels.add(sample.label)
        self._seen += len(sample.image)
        if self._seen - self._reported >= _REPORT_BYTES:
            self._report(self._seen - self._reported)
            self._reported = self._seen


def _check_size(folder: Path, path: Path, key: str, header: Header, first: tuple[str, Header]) -> None:
    first_key, expected = first
    if header[1:] != expected[1:]:
        raise _refusal(
            folder,
            path,
            key,
            f"have the size of '{first_key}', {expected.width}x{expected.height}",
            f"{header.width}x{header.height}",
            min(*header[1:], *expected[1:]),
        )
    if header.height != header.width:
        raise _refusal(folder, path, key, "be a square", f"{header.width}x{header.height}", min(header[1:]))


def _refusal(folder: Path, path: Path, key: str, rule: str, found: str, size: int) -> UserError:
    return UserError(
        f"sample '{key}' of {path} must {rule}; got {found}. "
        f"Make a set of one size from it: shard_tool make-shards {folder} --size {size}."
    )


def _check_headers(folder: Path, scanned: Sequence[_Scanned]) -> None:
    first = scanned[0]
    for tar in scanned:
        path = folder / f"{tar.shard.name}.tar"
        _check_size(folder, path, tar.first_key, tar.header, (first.first_key, first.header))
    raw = [tar for tar in scanned if tar.encodings["raw"]]
    if raw and any(tar.encodings["raw"] != tar.shard.samples for tar in scanned):
        raise UserError(
            f"the images must be .npy in all samples or in none; got both in {folder}. "
            "Name one suffix with --image, "
            f"or make a set from it: shard_tool make-shards {folder} --size {first.header.height}."
        )


def _describe(
    folder: Path, scanned: Sequence[_Scanned], split_of: dict[str, str], image: str, rules: Sequence[str]
) -> ShardSet:
    labels = FoundLabels.of_all([tar.labels for tar in scanned])
    encodings: Counter[str] = sum((tar.encodings for tar in scanned), Counter())
    suffixes: Counter[str] = sum((tar.suffixes for tar in scanned), Counter())
    members = [";".join(sorted(suffixes, key=lambda suffix: (-suffixes[suffix], suffix)))]
    splits: dict[str, Split] = {}
    positives: dict[str, list[int]] = {}
    for split in SPLITS:
        chosen = [tar for tar in scanned if split_of[tar.shard.name] == split]
        if chosen:
            splits[split] = Split.of([vars(tar.shard) for tar in chosen])
            counted = FoundLabels.of_all([tar.labels for tar in chosen]).positives
            positives[split] = [counted[name] for name in labels.attributes or labels.classes]
    part: dict[str, Any] = {
        "indexed": {"members": members, "splits": list(rules), "images": dict(encodings.most_common())},
        "source": {"source_name": folder.resolve().name},
        "positives": positives,
    }
    return ShardSet(
        folder,
        folder.resolve().name,
        scanned[0].header.height,
        3,
        max(SUFFIX, key=lambda encoding: encodings[encoding]),
        splits,
        labels.attributes,
        labels.classes,
        (part,),
        image_member=image,
    )


def _compare(known: ShardSet, found: ShardSet) -> None:
    """Raise `UserError` with every difference between the set that `shardset.json` describes and the tars."""
    if known.fingerprint == found.computed_fingerprint():
        return

    def tars(shards: ShardSet) -> dict[str, tuple[str, Shard]]:
        return {shard.name: (split, shard) for split, content in shards.splits.items() for shard in content}

    before, now = tars(known), tars(found)
    kinds = {
        "changed": [name for name in before if name in now and before[name][1] != now[name][1]],
        "new": [name for name in now if name not in before],
        "missing": [name for name in before if name not in now],
        "in another split": [name for name in before if name in now and before[name][0] != now[name][0]],
    }
    differences = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    raise UserError(
        f"the tars in {found.folder} must be as they were indexed; "
        f"got {'; '.join(differences) or 'another --image'}. Put them back as they were; or delete {SHARDSET_FILE} "
        "and index them again as another set, on which runs of the old one do not go on."
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{name}.tar" for name in names[:8])
    return shown + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")


def _write_index(path: Path, index: Index) -> bool:
    data = index.to_bytes()
    if path.exists() and path.read_bytes() == data:
        return False
    write_atomic(path, data)
    return True


def _summary(shards: ShardSet, scanned: Sequence[_Scanned], seconds: float) -> list[str]:
    samples = sum(tar.shard.samples for tar in scanned)
    size = sum(tar.shard.bytes for tar in scanned)
    images = shards.parts[0]["indexed"]["images"]
    lines = [
        f"{shards.folder} is indexed: {samples:,} images of {shards.image_size} px in {len(scanned):,} tars, "
        f"{megabytes(size)}; no tar was touched",
        f"  splits    {', '.join(f'{name} {split.total:,}' for name, split in shards.splits.items())}",
        f"  images    {', '.join(f'{count:,} {name}' for name, count in images.items())}",
        f"  labels    {FoundLabels.of_all([tar.labels for tar in scanned]).describe()}",
        f"  time      {seconds:,.1f} s, {size / seconds / 1e6:,.0f} MB/s",
    ]
    if "train" in shards.splits:
        lines.append(f"Next: accelerate launch --quiet train/run.py --data.shards {shards.folder}")
    return lines
