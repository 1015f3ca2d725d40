"""`index`: a WebDataset from anywhere, whose images are squares of one size, becomes seekable where it lies.

    faces/000000.tar ──┐                                            ┌──> faces/000000.index
    faces/000001.tar ──┴─ one reading: hashes, headers, labels ─────┴──> faces/000001.index
                                                                    └──> faces/shardset.json, last

No tar is written to, and no file is replaced that is not ours.
"""

import fnmatch
import os
import re
import shlex
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, Self

from pipeline.errors import UserError
from pipeline.files import write_atomic
from pipeline.format import INDEX_MAGIC, SHARDSET_FILE, SPLITS, SUFFIX, Index, Shard, ShardSet, Split
from pipeline.shards.picture import Header, read_header
from pipeline.tar import _NO_SAMPLE, Sample, _files, labels_of, scan_tar
from shard_tool.care.inspect import open_described, was_indexed
from shard_tool.care.readers import LIBRARIES, compare_readers, missing_libraries
from shard_tool.display import Report, counted, megabytes, show_added
from shard_tool.image.photo import quiet_pillow
from shard_tool.sources.protocol import MOST_CLASSES

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2|txz|tzst)$", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The first word of a tar's name, and its split."""
_REPORT_BYTES = 8 << 20
"""Progress is shown in steps of this."""
_SHOWN = 3
"""Problems of other readers that are printed."""


def index_folder(folder: Path, *, image: str = "", splits: Sequence[str] = (), threads: int, quiet: bool) -> None:
    """Write an `.index` beside every tar in `folder`, and a `shardset.json`; prints a summary unless `quiet`.

    Args:
        folder: where the tars lie side by side.
        image: suffix of the member that is the image, where samples hold several.
        splits: `NAME=GLOB` each; a tar whose name matches GLOB belongs to NAME. Others go by the start of their name.
        threads: tars that are read at the same time.

    Raises:
        UserError: for a folder that cannot be indexed, with the sample that is in the way.
        ShardError: where a tar is damaged.
    """
    started = time.monotonic()
    if not folder.is_dir():
        raise UserError(f"{folder} must be a folder of tars; got {'a file' if folder.exists() else 'no such folder'}.")
    known = open_described(str(folder)) if (folder / SHARDSET_FILE).exists() else None
    if known is not None and not was_indexed(known):
        if not quiet:
            print(f"{folder} is a shard set that make-shards wrote: it has its indexes.")
        return
    if known is not None:  # As it was indexed, unless told otherwise.
        image = image or known.image_member
        splits = splits or known.parts[0].get("indexed", {}).get("splits", ())
    image = image.lower()
    names = _tars(folder)
    split_of = _splits(names, splits)
    tars = [_Tar(folder, name) for name in names]
    for tar in tars:
        if tar.index_path.exists() and not _begins_with(tar.index_path, INDEX_MAGIC):
            raise UserError(f"{tar.index_path} must be an index of leanstream; got another file. Move it away.")
    size = sum(tar.path.stat().st_size for tar in tars)
    with show_added("indexing", size, quiet=quiet, unit="MB") as report:
        _scan(tars, image, threads, report)
    _check_alike(folder, tars)
    shards = _describe(folder, tars, split_of, image, splits)
    if known is not None:
        _compare(known, shards)
    written = 0
    for tar in tars:
        data = tar.index.to_bytes()
        if not tar.index_path.exists() or tar.index_path.read_bytes() != data:
            write_atomic(tar.index_path, data)
            written += 1
    if known is None:
        shards.save()
    if quiet:
        return
    if known is not None:
        lost = counted(written, "lost or damaged index", "lost or damaged indexes")
        again = f"; {lost} written again" if written else ""
        print(f"{folder} is indexed already, and its {counted(len(names), 'tar')} did not change{again}.")
        return
    print("\n".join(_summary(shards, tars, time.monotonic() - started)))
    print("\n".join(_ask_readers(ShardSet.open(folder), names)))
    if "train" in shards.splits:
        print(f"Next: accelerate launch --quiet train/run.py --data.shards {shlex.quote(str(folder))}")


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
        deep = next((Path(parent, name) for name in inner if name.endswith(".tar")), None)
        if deep is not None and deep.parent != folder:
            raise UserError(
                f"the tars must lie side by side in {folder}; got {deep.relative_to(folder)}. "
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
    words = {name: re.split("[^a-z]", name.lower(), maxsplit=1)[0] for name in names}
    return {name: chosen.get(name) or _SPLIT_OF.get(words[name], "train") for name in names}


def _begins_with(path: Path, start: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(start)) == start


class _Tar:
    """One tar; `scan` reads it, once, and leaves here what it holds."""

    shard: Shard
    index: Index
    first: tuple[str, Header]
    """Key of its first image, and what that is."""
    hidden_keys = 0
    """Samples that `datasets` takes for hidden files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.path, self.index_path = name, folder / f"{name}.tar", folder / f"{name}.index"
        self.encodings, self.suffixes = Counter[str](), Counter[str]()
        """Of the images."""
        self.left_out = Counter[str]()
        """Files that are no part of a sample, by kind."""
        self.labels = FoundLabels()

    def scan(self, image: str, stop: threading.Event, report: Report) -> None:
        """Raises `UserError` and `ShardError` as `index_folder` does; `report` is told of bytes as they are read."""
        seen = reported = 0

        def see(sample: Sample) -> None:
            nonlocal seen, reported
            if stop.is_set():
                raise CancelledError
            self._see(sample)
            seen += len(sample.image)
            if seen - reported >= _REPORT_BYTES:
                report(seen - reported, 0)
                reported = seen

        self.index = scan_tar(self.path, image, see)
        if not len(self.index.records):
            raise UserError(f"{self.path} must hold samples; got none. Move it away.")
        self._look_behind()
        self.shard = Shard(self.name, len(self.index.records), self.index.tar_bytes, self.index.tar_sha256)
        report(self.index.tar_bytes - reported, 0)

    def _see(self, sample: Sample) -> None:
        try:
            header = read_header(sample.image)
        except ValueError as error:
            rule = "hold a JPEG, PNG, WebP or .npy image of 8-bit RGB"
            raise _refusal(self.path, sample.key, rule, str(error), 64) from None
        if not self.suffixes:
            self.first = sample.key, header
        _check_size(self.path, sample.key, header, self.first)
        self.encodings[header.encoding] += 1
        self.suffixes[sample.suffix] += 1
        self.hidden_keys += sample.key.rpartition("/")[2].startswith("__")
        self.labels.add(sample.label)

    def _look_behind(self) -> None:
        """Count what no reader takes, and refuse what lies behind the end mark, where every reader stops."""
        at = 0
        with FileIO(self.path) as file:

            def read(start: int, size: int) -> bytes:
                nonlocal at
                at = start
                return os.pread(file.fileno(), size, start)

            for name, _, _ in _files(read):
                if _NO_SAMPLE.match(name):
                    hidden = name.rpartition("/")[2].startswith(".")
                    kind = "hidden" if hidden else "metadata (__name__)" if name.startswith("__") else "no extension"
                    self.left_out[kind] += 1
            end = at
            while data := os.pread(file.fileno(), _REPORT_BYTES, at):
                if data.strip(b"\0"):
                    raise UserError(
                        f"{self.path} must end with its end mark, where readers stop; got more behind byte {end:,}: "
                        "several tars in one file, or a hole. Unpack it (tar -xif) and pack it again, or copy it again."
                    )
                at += len(data)


def _scan(tars: Sequence[_Tar], image: str, threads: int, report: Report) -> None:
    stop = threading.Event()
    with quiet_pillow(), ThreadPoolExecutor(threads, "index") as executor:
        try:
            list(executor.map(lambda tar: tar.scan(image, stop, report), tars))
        except BaseException:
            stop.set()
            executor.shutdown(cancel_futures=True)
            raise


def _check_size(path: Path, key: str, header: Header, first: tuple[str, Header]) -> None:
    first_key, expected = first
    found = f"{header.width}x{header.height}"
    if header[1:] != expected[1:]:
        rule = f"have the size of '{first_key}', {expected.width}x{expected.height}"
        raise _refusal(path, key, rule, found, min(*header[1:], *expected[1:]))
    if header.height != header.width:
        raise _refusal(path, key, "be a square", found, min(header[1:]))


def _refusal(path: Path, key: str, rule: str, found: str, size: int) -> UserError:
    return UserError(
        f"sample '{key}' of {path} must {rule}; got {found}. "
        f"Make a set of one size from it: shard_tool make-shards {shlex.quote(str(path.parent))} --size {size}."
    )


def _check_alike(folder: Path, tars: Sequence[_Tar]) -> None:
    """Raise `UserError` unless the tars have images of one size, and arrays in all samples or in none."""
    first = tars[0].first
    for tar in tars:
        _check_size(tar.path, *tar.first, first)
    arrays = sum(tar.encodings["raw"] for tar in tars)
    if arrays and arrays < sum(tar.shard.samples for tar in tars):
        raise UserError(
            f"the images must be .npy in all samples or in none; got both in {folder}. Name one suffix with --image, "
            f"or make a set from it: shard_tool make-shards {shlex.quote(str(folder))} --size {first[1].height}."
        )


def _describe(
    folder: Path, tars: Sequence[_Tar], split_of: dict[str, str], image: str, rules: Sequence[str]
) -> ShardSet:
    labels = FoundLabels.of_all([tar.labels for tar in tars])
    encodings, suffixes = (sum((getattr(tar, of) for tar in tars), Counter[str]()) for of in ("encodings", "suffixes"))
    members = [";".join(sorted(suffixes, key=lambda suffix: (-suffixes[suffix], suffix)))]
    splits: dict[str, Split] = {}
    positives: dict[str, list[int]] = {}
    for split in SPLITS:
        chosen = [tar for tar in tars if split_of[tar.name] == split]
        if chosen:
            splits[split] = Split.of([vars(tar.shard) for tar in chosen])
            counts = FoundLabels.of_all([tar.labels for tar in chosen]).positives
            positives[split] = [counts[name] for name in labels.attributes or labels.classes]
    part: dict[str, Any] = {
        "indexed": {"members": members, "splits": list(rules), "images": dict(encodings.most_common())},
        "source": {"source_name": folder.resolve().name},
        "positives": positives,
    }
    return ShardSet(
        folder,
        folder.resolve().name,
        tars[0].first[1].height,
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

    before, now = (
        {shard.name: (split, shard) for split, content in shards.splits.items() for shard in content}
        for shards in (known, found)
    )
    both = [name for name in before if name in now]
    kinds = {
        "changed": [name for name in both if before[name][1] != now[name][1]],
        "new": [name for name in now if name not in before],
        "missing": [name for name in before if name not in now],
        "in another split": [name for name in both if before[name][0] != now[name][0]],
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


def _summary(shards: ShardSet, tars: Sequence[_Tar], seconds: float) -> Iterator[str]:
    samples = sum(tar.shard.samples for tar in tars)
    size = sum(tar.shard.bytes for tar in tars)
    images = shards.parts[0]["indexed"]["images"]
    left_out = sum((tar.left_out for tar in tars), Counter[str]())
    hidden = sum(tar.hidden_keys for tar in tars)
    yield (
        f"{shards.folder} is indexed: {counted(samples, 'image')} of {shards.image_size} px in "
        f"{counted(len(tars), 'tar')}, {megabytes(size)}; no tar was touched"
    )
    yield f"  splits    {', '.join(f'{name} {split.total:,}' for name, split in shards.splits.items())}"
    yield f"  images    {', '.join(f'{count:,} {name}' for name, count in images.items())}"
    yield f"  labels    {FoundLabels.of_all([tar.labels for tar in tars]).describe()}"
    if left_out:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common())
        yield f"  left out  {counted(left_out.total(), 'file')} that no reader takes for a part of a sample: {kinds}"
    if hidden:
        yield f"  note      datasets skips {counted(hidden, 'sample')}, whose names begin with __ (webdataset does not)"
    yield f"  time      {seconds:,.1f} s, {size / seconds / 1e6:,.0f} MB/s"


def _ask_readers(shards: ShardSet, names: Sequence[str]) -> Iterator[str]:
    """What webdataset and datasets make of the first tar, the last one, and one between."""
    chosen = {names[0], names[len(names) // 2], names[-1]}
    missing = missing_libraries()
    asked = [name for name in LIBRARIES if name not in missing]
    problems = compare_readers(shards, chosen, asked, lambda samples, problems: None)
    if asked and not problems:
        verb = "reads" if len(asked) == 1 else "read"
        yield f"  readers   {' and '.join(asked)} {verb} {counted(len(chosen), 'tar')} of it as leanstream does"
    for file, key, problem in problems[:_SHOWN]:
        yield f"  readers   {file} {'' if key is None else f'{key} '}{problem}"
    if len(problems) > _SHOWN:
        yield f"            and {len(problems) - _SHOWN:,} more: shard_tool verify {shards.folder} --readers"
    if missing:
        yield f"  readers   not compared with {' and '.join(missing)}, not installed here"


class FoundLabels:
    """Counts the labels of samples; a set has labels if all of its samples have the same kind."""

    def __init__(self) -> None:
        self.positives: Counter[str] = Counter()
        """Samples that have each attribute, or are of each class."""
        self._kinds: Counter[str] = Counter()
        """Samples with attributes, with a label, or with neither."""
        self._names: dict[frozenset[str], tuple[str, ...]] = {}
        """The sets of attributes that samples have, each in the order of its first sample."""
        self._highest = -1

    @classmethod
    def of_all(cls, parts: Iterable["FoundLabels"]) -> Self:
        """Those of several tars together."""
        total = cls()
        for part in parts:
            total.positives.update(part.positives)
            total._kinds.update(part._kinds)
            total._names = part._names | total._names
            total._highest = max(total._highest, part._highest)
        return total

    def add(self, data: bytes) -> None:
        """Count one sample, by its json or `cls` member."""
        labels = labels_of(data) if data else {}
        self._kinds[next(iter(labels), "none")] += 1
        if "attributes" in labels:
            names = tuple(labels["attributes"])
            if len(self._names) < 2:  # Of two, none is that of all.
                self._names.setdefault(frozenset(names), names)
            self.positives.update(name for name, value in labels["attributes"].items() if value)
        elif "label" in labels:
            self._highest = max(self._highest, labels["label"])
            self.positives[str(labels["label"])] += 1

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes of all samples; empty where not all have the same."""
        alike = set(self._kinds) == {"attributes"} and len(self._names) == 1
        return next(iter(self._names.values())) if alike else ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, which are their numbers; empty where not all samples have one."""
        if set(self._kinds) != {"label"} or self._highest >= MOST_CLASSES:
            return ()
        return tuple(map(str, range(self._highest + 1)))

    def describe(self) -> str:
        """What there is, or why there is none."""
        if self.attributes:
            return counted(len(self.attributes), "attribute")
        if self.classes:
            return counted(len(self.classes), "class", "classes")
        if set(self._kinds) == {"attributes"}:
            return "none: the samples have other attributes than each other"
        if set(self._kinds) == {"label"}:
            return f"none: class numbers must be below {MOST_CLASSES:,}; there is {self._highest:,}"
        samples = self._kinds.total()
        labelled = samples - self._kinds["none"]
        return f"none: only {labelled:,} of {counted(samples, 'sample')} have the same kind" if labelled else "none"
