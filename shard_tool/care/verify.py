"""`verify`: whether a set is, byte for byte, what was written, and what is wrong with it if it is not.

    every tar, in threads     one reading: sha256, and what its index must be; the samples decode, their labels
    a tar of another sha256   each sample by its index: headers, crc32 of image and json, padding
    over all                  keys, label counts, strangers, rejections, lists of photos; other libraries

A tar of the right sha256 is whole: if its index says something else, the index is to blame.
"""

import contextlib
import hashlib
import json
import os
import shlex
import sys
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EXIT_DONE, EXIT_FAULT, ShardError, UserError, describe_os_error
from pipeline.format import REJECTED_FILE, SHARDSET_FILE, Index, Shard, ShardSet
from pipeline.shards.picture import PICTURE_ERRORS, decode_picture, npy_header
from pipeline.shards.shard import ShardFile
from pipeline.tar import BLOCK, Sample, labels_of, member_name, scan_tar, split_member_name
from shard_tool.care import readers as others
from shard_tool.care.inspect import (
    command_again,
    files_beside,
    has_json,
    labels_by_split,
    open_described,
    was_indexed,
)
from shard_tool.care.readers import Problem
from shard_tool.display import counted, show_progress
from shard_tool.image.photo import quiet_pillow
from shard_tool.sources.listing import name_hash

SHOWN_OF_A_FILE = 10
"""Problems of one file that are printed; `--json` has them all."""

Tick = Callable[[int, int], None]
"""Told of samples and problems as they come."""


def verify(folder: str, *, quick: bool, readers: bool, threads: int, as_json: bool, quiet: bool) -> int:
    """Check the set in `folder` and print what was found.

    Args:
        folder: where the set lies.
        quick: compare only the hashes of its files.
        readers: compare also what webdataset and datasets read.
        threads: shards that are checked at the same time.
        as_json: print all of it for programs.
        quiet: print nothing but problems, and these on stderr.

    Returns the exit code: `EXIT_DONE` if the set is whole, `EXIT_FAULT` if not. Memory is 8 bytes for each sample, to
    find keys that stand twice. Raises `UserError` where there is no set, or one that may not be read.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1; got {threads}. Leave it out for one for each core.")
    if readers:
        others.check_installed()
    started = time.monotonic()
    shards, checks, to_restore = None, list[ShardCheck](), ""
    try:
        shards = open_described(folder)
    except ShardError as error:  # Without it, nothing says what the shards should be.
        problems = [Problem(SHARDSET_FILE, None, str(error))]
    else:
        checks = check_shards(shards, quick=quick, threads=threads, quiet=quiet)
        to_restore = _to_restore(folder, shards, checks)
        problems = [problem for one in checks for problem in one.problems] + list(_over_all(shards, checks, quick))
    state = "damaged" if problems else "whole, but not read alike by all"
    if shards is not None and readers:
        whole = [one.shard.name for one in checks if one.whole]
        with _ticks("reading as others do", len(others.LIBRARIES) * _samples(shards), quiet) as tick:
            problems += others.compare_readers(shards, whole, others.LIBRARIES, tick)
    samples = 0 if shards is None else _samples(shards)
    if as_json:
        listed = [problem._asdict() for problem in problems]
        content = {"folder": folder, "whole": not problems, "quick": quick, "samples": samples, "shards": len(checks)}
        print(json.dumps({**content, "problems": listed, "restore": to_restore}, indent=1, ensure_ascii=False))
    elif quiet:
        print("".join(f"{line}\n" for line in _listed(problems)), end="", file=sys.stderr)
    elif problems:
        files = len({problem.file for problem in problems})
        found = f"{counted(len(problems), 'problem')} in {counted(files, 'file')}"
        print("\n".join([*_listed(problems), f"{folder} is {state}: {found}."]))
        if to_restore:
            print(f"Next: {to_restore}")
    else:
        what = f"every {'hash' if quick else 'hash, index, image, label and key'} as written"
        what += f" and as {' and '.join(others.LIBRARIES)} read it" if readers else ""
        images, seconds = f"{counted(samples, 'image')} in {counted(len(checks), 'shard')}", time.monotonic() - started
        print(f"{folder} is whole: {images}, {what}, {seconds:,.1f} s.")
    return EXIT_FAULT if problems else EXIT_DONE


def _to_restore(folder: str, shards: ShardSet, checks: Iterable["ShardCheck"]) -> str:
    """How to get damaged shards back; empty if there are none."""
    if all(one.whole and one.index_whole for one in checks):
        return ""
    if was_indexed(shards):
        lost = "" if all(one.whole for one in checks) else "copy its tars again, then: "
        return f"{lost}shard_tool index {shlex.quote(folder)}"
    part = (
        shards.parts[0] if len(shards.parts) == 1 else {}
    )  # Of several, made one after the other, none is made again.
    command = command_again(part.get("settings", {}), shards.folder) if "settings" in part else None
    if command is None:
        return "copy these files again from where the set came"
    return (
        f"run the command that made it again, which restores what is damaged:\n  {command}\n"
        f"where PHOTOS is '{part.get('source', {}).get('source_name')}' with the path that it has now."
    )


def _samples(shards: ShardSet) -> int:
    return sum(split.total for split in shards.splits.values())


def _listed(problems: Iterable[Problem]) -> list[str]:
    """A line for each, in columns; of a file with very many, the first ones."""
    lines: list[str] = []
    total = Counter(problem.file for problem in problems)
    seen: Counter[str] = Counter()
    width = max(map(len, total), default=0)
    for file, key, problem in problems:
        seen[file] += 1
        if seen[file] <= SHOWN_OF_A_FILE:
            lines.append(f"{file:<{width}}  {'' if key is None else f'{key} '}{problem}")
        elif seen[file] == SHOWN_OF_A_FILE + 1:
            lines.append(f"{file:<{width}}  and {total[file] - SHOWN_OF_A_FILE:,} more; --json has them all")
    return lines


@contextlib.contextmanager
def _ticks(what: str, total: int, quiet: bool) -> Iterator[Tick]:
    """A function that adds samples and problems to a progress bar."""
    done = found = 0
    with show_progress(what, total, quiet=quiet, counted="problems") as report:

        def tick(samples: int, problems: int) -> None:
            nonlocal done, found  # Under the interpreter lock, and only for show.
            done, found = done + samples, found + problems
            report(done, found)

        tick(0, 0)
        yield tick


# One shard


def check_shards(shards: ShardSet, *, quick: bool, threads: int, quiet: bool) -> list["ShardCheck"]:
    """Check all shards, `threads` at a time, in the order of the set."""
    owners = {shard.sha256: shard.name for split in shards.splits.values() for shard in split}
    with (
        _ticks("verifying", _samples(shards), quiet) as tick,
        quiet_pillow(),
        ThreadPoolExecutor(threads, "verify") as pool,
    ):
        checks = [
            ShardCheck(shards, name, shard, owners, tick) for name, split in shards.splits.items() for shard in split
        ]
        try:
            list(pool.map(lambda one: one.run(quick=quick), checks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return checks


class ShardCheck:
    """The checks of one shard; `run` makes them all, once, and leaves here what was found."""

    def __init__(self, shards: ShardSet, split: str, shard: Shard, owners: Mapping[str, str], tick: Tick) -> None:
        """`owners` names the shard of each sha256 in the set; `tick` is told of samples and problems as they come."""
        self.split, self.shard = split, shard
        self.problems: list[Problem] = []
        self.whole = False
        """The tar is, byte for byte, the recorded one."""
        self.keys: list[int] | NDArray[np.uint64] = []
        """[samples] `name_hash` of each key; fewer where the shard was not looked through."""
        self.labels = np.zeros(len(shards.attributes) or len(shards.classes), np.int64)
        """[attributes or classes] How many samples have each."""
        self.labelled = 0
        """Samples whose labels were read."""
        self._set, self._owners, self._tick = shards, owners, tick
        self._tar, self._index = f"{shard.name}.tar", f"{shard.name}.index"
        self._ours = any("settings" in part for part in shards.parts)
        self._needs_json = any(map(has_json, shards.parts)) or bool(len(self.labels))
        self._told = self._ticked = 0

    @property
    def index_whole(self) -> bool:
        """Nothing is wrong with the index."""
        return not any(problem.file == self._index for problem in self.problems)

    def run(self, *, quick: bool) -> None:
        """Check everything, or with `quick` nothing but hashes."""
        index = self._read_index()
        try:
            self._check_tar(index, quick)
        except FileNotFoundError:
            self._add(self._tar, None, "is missing")
        except PermissionError as error:
            raise describe_os_error(error, "reading a shard") from error
        except OSError as error:
            self._add(self._tar, None, f"could not be read: {error.strerror or error}")
        self.keys = np.array(self.keys, np.uint64)
        self._report(self.shard.samples - self._ticked)

    def _read_index(self) -> Index | None:
        """The index, if it is one of this very tar."""
        wrong, shard = "", self.shard
        try:
            data = (self._set.folder / self._index).read_bytes()
            index = Index.from_bytes(data, self._index)
            owner = self._owners.get(index.tar_sha256)
            if index.tar_sha256 != shard.sha256:
                wrong = f"is that of {owner}.tar" if owner else "is that of an unknown tar"
            elif (len(index.records), index.tar_bytes) != (shard.samples, shard.bytes):
                wrong = f"knows {counted(len(index.records), 'sample')} in {index.tar_bytes:,} bytes"
                wrong += f" in place of {shard.samples:,} in {shard.bytes:,}"
            elif index.to_bytes() != data:
                wrong = "has something in its padding"
        except FileNotFoundError:
            wrong = "is missing"
        except ShardError as error:
            wrong = f"cannot be used: {_got(error)}"
        except OSError as error:
            wrong = f"could not be read: {error.strerror or error}"
        if not wrong:
            return index
        self._add(self._index, None, wrong)
        return None

    def _check_tar(self, index: Index | None, quick: bool) -> None:
        """Read all of the tar once; one that is not whole is looked through again, if its index tells where."""
        path, scanned, why, at = self._set.folder / self._tar, None, "", len(self.problems)
        if not quick:
            try:
                scanned = scan_tar(path, self._set.image_member, self._see)
            except ShardError as error:
                why = _got(error)
        if scanned is None:
            with open(path, "rb") as file:
                sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        else:
            sha256, size = scanned.tar_sha256, scanned.tar_bytes
        seen, self.problems[at:] = self.problems[at:], []  # They come after what is wrong with all of the tar.
        owner = self._owners.get(sha256)
        self.whole = (sha256, size) == (self.shard.sha256, self.shard.bytes)
        if size != self.shard.bytes:
            self._add(self._tar, None, f"has {size:,} bytes in place of {self.shard.bytes:,}")
        if sha256 != self.shard.sha256:
            expected = f"in place of {self.shard.sha256[:12]}..."
            what = f"holds the bytes of {owner}.tar" if owner else f"has sha256 {sha256[:12]}... {expected}"
            self._add(self._tar, None, what)
        if scanned is not None and (self.whole or (index is None and not owner)):
            self.problems += seen
            if len(scanned.records) != self.shard.samples:
                found = counted(len(scanned.records), "sample")
                self._add(self._tar, None, f"holds {found} in place of {self.shard.samples:,}")
            elif index is not None and (wrong := int(np.count_nonzero(index.records != scanned.records))):
                self._add(self._index, None, f"says another place or crc32 of {counted(wrong, 'sample')} than its tar")
            return
        self.keys, self.labelled, self.labels[:] = [], 0, 0
        if quick or (owner and not self.whole):
            return  # A tar of another shard is checked where it belongs.
        if index is None:
            self._add(self._tar, None, f"is no whole tar: {why}")
            return
        with FileIO(path) as file:
            self._look_through(file, size, index)

    def _look_through(self, file: FileIO, size: int, index: Index) -> None:
        """Say which samples are not what the index says."""
        blamed, before = self._index if self.whole else self._tar, len(self.problems)
        for row, record in enumerate(index.records):
            name, found = f"row {row}", dict[str, bytes]()
            places = {what: (int(record[f"{what}_offset"]), int(record[f"{what}_size"])) for what in ("image", "json")}
            if max(offset + length for offset, length in places.values()) > size:
                left = f"{len(index.records) - row:,} of {counted(len(index.records), 'sample')}"
                what = f"places {left} behind the end" if self.whole else f"is cut off: {left} are gone"
                self._add(blamed, None, what)
                return
            for what, (offset, length) in places.items():
                if what == "json" and not length:
                    found[what] = b""
                    continue
                key = _member_key(file, offset, length)
                data = os.pread(file.fileno(), -(-length // BLOCK) * BLOCK, offset)
                if key is None:
                    self._add(blamed, name, f"has a damaged tar header before its {what}")
                elif what == "image":
                    name = key
                elif key != name and not name.startswith("row "):
                    self._add(blamed, name, f"is followed by the json of '{key}'")
                if any(data[length:]):
                    self._add(blamed, name, f"has something in the padding after its {what}")
                if zlib.crc32(data[:length]) == record[f"{what}_crc32"]:
                    found[what] = data[:length]
                else:
                    because = "its index says another one" if self.whole else "its bytes changed"
                    self._add(blamed, name, f"has {what} bytes of another crc32: {because}")
            self._check_sample(name, found.get("image"), found.get("json"))
        if not self.whole and len(self.problems) == before and size == self.shard.bytes:
            self._add(self._tar, None, "differs where no sample is")

    def _see(self, sample: Sample) -> None:
        self._check_sample(sample.key, sample.image, sample.label)
        self._report(1)

    def _check_sample(self, key: str, image: bytes | None, meta: bytes | None) -> None:
        """Whether a sample is one of the set; of damaged bytes (None) something has been said."""
        assert isinstance(self.keys, list), "the array is made at the end"
        self.keys.append(name_hash(key.encode(errors="surrogateescape")))
        if image is not None:
            try:
                self._check_image(key, image)
            except PICTURE_ERRORS as error:
                self._add(self._tar, key, f"does not decode: {error}")
        if meta:
            self._check_meta(key, meta)
        elif meta is not None and self._needs_json:
            self._add(self._tar, key, "has no json")

    def _check_image(self, key: str, data: bytes) -> None:
        size = self._set.image_size
        if self._set.encoding == "raw":
            height, width, channels = npy_header(data)[1]
        else:
            height, width, channels = decode_picture(data, np.empty((size, size, 3), np.uint8))
        if (height, width) != (size, size):
            self._add(self._tar, key, f"has {width}x{height} pixels in place of {size}x{size}")
        # Training makes three of any number; our own writer writes nothing else.
        if channels != self._set.channels and self._ours:
            self._add(self._tar, key, f"has {channels} channels in place of {self._set.channels}")

    def _check_meta(self, key: str, data: bytes) -> None:
        try:
            # What else a foreign json says is not ours to judge, nor whether it is one.
            meta = json.loads(data) if self._ours else labels_of(data)
        except (ValueError, RecursionError) as error:
            self._add(self._tar, key, f"has a json that cannot be read: {error}")
            return
        labels = _labels_of(meta, self._set)
        if labels is None:
            self._add(self._tar, key, f"has a json without the set's labels: {data[:80].decode('utf-8', 'replace')}")
        else:
            self.labels[labels] += 1
            self.labelled += 1

    def _add(self, file: str, key: str | None, problem: str) -> None:
        self.problems.append(Problem(file, key, problem))

    def _report(self, samples: int) -> None:
        new = len(self.problems) - self._told
        self._told += new
        self._ticked += samples
        if samples or new:
            self._tick(samples, new)


def _got(error: ShardError) -> str:
    """`<rule>; got <value>. <remedy>.` -> `got <value>`."""
    return str(error).partition("; ")[2].partition(". ")[0]


def _member_key(file: FileIO, offset: int, size: int) -> str | None:
    """The key in the tar header of a member; None where that is damaged or of another size."""

    def read(start: int, count: int) -> bytes:
        return os.pread(file.fileno(), count, start)

    try:
        member = tarfile.TarInfo.frombuf(read(max(offset - BLOCK, 0), BLOCK), "utf-8", "surrogateescape")
        return split_member_name(member_name(read, offset))[0] if member.size == size else None
    except tarfile.TarError:
        return None


def _labels_of(meta: Any, shards: ShardSet) -> list[int] | None:
    """Numbers of the attributes that a sample has, or of its class; None where its json is not of this set."""
    if not isinstance(meta, dict):
        return None
    if shards.attributes:
        attributes = meta.get("attributes")
        bits = [attributes.get(name) for name in shards.attributes] if isinstance(attributes, dict) else [None]
        if not all(type(bit) in (int, bool) and bit in (0, 1) for bit in bits):
            return None
        return [number for number, bit in enumerate(bits) if bit]
    if shards.classes:
        label = meta.get("label")
        return [label] if type(label) is int and 0 <= label < len(shards.classes) else None
    return []


# Over all shards


def _over_all(shards: ShardSet, checks: list[ShardCheck], quick: bool) -> Iterator[Problem]:
    yield from _totals(shards)
    ours = {f"{one.shard.name}.tar" for one in checks}
    for path in sorted(shards.folder.glob("*.tar")):
        if path.name not in ours:  # Readers that take all of a folder would read it too.
            yield Problem(path.name, None, f"is not of this set: {SHARDSET_FILE} does not name it")
    beside = files_beside(shards)
    if REJECTED_FILE not in dict(beside):
        yield from _rejections(shards)
    for name, expected in beside:
        try:
            sha256 = hashlib.sha256((shards.folder / name).read_bytes()).hexdigest()
        except FileNotFoundError:
            yield Problem(name, None, "is missing")
            continue
        if sha256 != expected:
            yield Problem(name, None, f"has sha256 {sha256[:12]}... in place of {expected[:12]}...")
    if not quick:
        # Many foreign sets count from zero in each tar, and no reader joins members of two tars.
        yield from () if was_indexed(shards) else _repeated_keys(shards, checks)
        yield from _label_counts(shards, checks)


def _totals(shards: ShardSet) -> Iterator[Problem]:
    """The sums that `shardset.json` holds for those who read it without leanstream."""
    content = json.loads((shards.folder / SHARDSET_FILE).read_bytes())
    for name, split in shards.splits.items():
        total = content["splits"][name].get("samples")
        if total != split.total:
            yield Problem(SHARDSET_FILE, None, f"counts {total} samples in {name}; its shards hold {split.total:,}")


def _rejections(shards: ShardSet) -> Iterator[Problem]:
    """Of an older set, which recorded how many there are and no digest."""
    try:
        lines = (shards.folder / REJECTED_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    if len(lines) != shards.rejected:
        yield Problem(REJECTED_FILE, None, f"has {counted(len(lines), 'line')} in place of {shards.rejected:,}")


def _repeated_keys(shards: ShardSet, checks: list[ShardCheck]) -> Iterator[Problem]:
    """Two samples of one key: readers that join members by it would mix them up."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(one.keys for one in checks)])
    first_row = np.cumsum([0, *(len(one.keys) for one in checks)])
    order = np.argsort(hashes, kind="stable")

    def place(number: int) -> tuple[ShardCheck, int]:
        shard = int(np.searchsorted(first_row, number, side="right")) - 1
        return checks[shard], int(number - first_row[shard])

    for pair in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]).tolist():
        (one, row), (other, other_row) = place(order[pair]), place(order[pair + 1])
        try:
            keys = [ShardFile(shards, two.shard).key(at) for two, at in ((one, row), (other, other_row))]
        except ShardError:
            continue  # A damaged shard has been reported already.
        if keys[0] == keys[1]:
            where = f"in {one.shard.name}.tar" if other is not one else "before"
            yield Problem(f"{other.shard.name}.tar", keys[1], f"has a key that stands {where} too")


def _label_counts(shards: ShardSet, checks: list[ShardCheck]) -> Iterator[Problem]:
    """Whether as many samples have each label as `shardset.json` says."""
    for split, said in (labels_by_split(shards) or {}).items():
        mine = [one for one in checks if one.split == split]
        if any(one.labelled != one.shard.samples for one in mine):
            continue  # Samples are damaged, and have been reported.
        for (name, should), has in zip(said.items(), np.sum([one.labels for one in mine], 0).tolist(), strict=True):
            if has != should:
                what = f"counts {counted(should, 'sample')} with '{name}' in {split}; {has:,} have it"
                yield Problem(SHARDSET_FILE, None, what)
