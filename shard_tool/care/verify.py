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
from collections.abc import Iterable, Iterator, Mapping
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
from shard_tool.build.record import files_beside
from shard_tool.care import readers as others
from shard_tool.care.inspect import command_again, has_json, labels_of_all, open_described, was_indexed
from shard_tool.care.readers import Problem
from shard_tool.display import Report, counted, show_added
from shard_tool.image.photo import quiet_pillow
from shard_tool.sources.listing import name_hash

SHOWN_OF_A_FILE = 10
"""Problems of one file that are printed; `--json` has them all."""


def verify(folder: str, *, quick: bool, readers: bool, threads: int, as_json: bool, quiet: bool) -> int:
    """Check the set in `folder` and print what was found.

    `quick` compares only hashes, `readers` also what webdataset and datasets read; `threads` shards are checked at the
    same time; `quiet` prints nothing but problems, on stderr. Memory is 8 bytes a sample, for keys that stand twice.

    Returns `EXIT_DONE` if the set is whole, else `EXIT_FAULT`. Raises `UserError` where there is none, or one that may
    not be read.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1; got {threads}. Leave it out for one for each core.")
    if readers:
        others.check_installed()
    started = time.monotonic()
    shards, checks, samples, to_restore = None, list[ShardCheck](), 0, ""
    try:
        shards = open_described(folder)
    except ShardError as error:  # Without it, nothing says what the shards should be.
        problems = [Problem(SHARDSET_FILE, None, str(error))]
    else:
        samples = sum(split.total for split in shards.splits.values())
        with show_added("verifying", samples, quiet=quiet, counted="problems") as tick:
            checks = _check_shards(shards, quick, threads, tick)
        to_restore = _to_restore(folder, shards, checks)
        problems = [problem for one in checks for problem in one.problems] + list(_over_all(shards, checks, quick))
    state = "damaged" if problems else "whole, but not read alike by all"
    if shards is not None and readers:
        whole = [one.shard.name for one in checks if one.whole]
        total = len(others.LIBRARIES) * samples
        with show_added("reading as others do", total, quiet=quiet, counted="problems") as tick:
            problems += others.compare_readers(shards, whole, others.LIBRARIES, tick)
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
    all_whole = all(one.whole for one in checks)
    if all_whole and not any(problem.file.endswith(".index") for one in checks for problem in one.problems):
        return ""
    if was_indexed(shards):
        return f"{'' if all_whole else 'copy its tars again, then: '}shard_tool index {shlex.quote(folder)}"
    # Of several parts, made one after the other, none is made again.
    part = shards.parts[0] if len(shards.parts) == 1 else {}
    command = command_again(part["settings"], shards.folder) if "settings" in part else None
    if command is None:
        return "copy these files again from where the set came"
    return (
        f"run the command that made it again, which restores what is damaged:\n  {command}\n"
        f"where PHOTOS is '{part.get('source', {}).get('source_name')}' with the path that it has now."
    )


def _listed(problems: Iterable[Problem]) -> list[str]:
    """A line for each, in columns; of a file with very many, the first ones."""
    by_file: dict[str, list[str]] = {}
    for file, key, problem in problems:
        by_file.setdefault(file, []).append(problem if key is None else f"{key} {problem}")
    for said in by_file.values():
        if len(said) > SHOWN_OF_A_FILE:
            said[SHOWN_OF_A_FILE:] = [f"and {len(said) - SHOWN_OF_A_FILE:,} more; --json has them all"]
    width = max(map(len, by_file), default=0)
    return [f"{file:<{width}}  {line}" for file, said in by_file.items() for line in said]


# One shard


def _check_shards(shards: ShardSet, quick: bool, threads: int, tick: Report) -> list["ShardCheck"]:
    """Check all shards, `threads` at a time, in the order of the set."""
    owners = {shard.sha256: shard.name for split in shards.splits.values() for shard in split}
    checks = [ShardCheck(shards, name, shard, owners, tick) for name, split in shards.splits.items() for shard in split]
    with quiet_pillow(), ThreadPoolExecutor(threads, "verify") as pool:
        try:
            list(pool.map(lambda one: one.run(quick=quick), checks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return checks


class ShardCheck:
    """The checks of one shard; `run` makes them all, once, and leaves here what was found."""

    def __init__(self, shards: ShardSet, split: str, shard: Shard, owners: Mapping[str, str], tick: Report) -> None:
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
        self._ticked = 0

    def run(self, *, quick: bool) -> None:
        """Check everything, or with `quick` nothing but hashes."""
        index = None
        with self._blaming(self._index):
            index = self._read_index()
        with self._blaming(self._tar):
            self._check_tar(index, quick)
        self.keys = np.array(self.keys, np.uint64)
        self._tick(self.shard.samples - self._ticked, len(self.problems))

    @contextlib.contextmanager
    def _blaming(self, file: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self._add(file, None, "is missing")
        except PermissionError as error:
            raise describe_os_error(error, "reading a shard") from error
        except OSError as error:
            self._add(file, None, f"could not be read: {error.strerror or error}")
        except ShardError as error:
            self._add(file, None, f"cannot be used: {_got(error)}")

    def _read_index(self) -> Index | None:
        """The index, if it is one of this very tar."""
        data, shard = (self._set.folder / self._index).read_bytes(), self.shard
        index = Index.from_bytes(data, self._index)
        if index.tar_sha256 != shard.sha256:
            owner = self._owners.get(index.tar_sha256)
            wrong = f"is that of {owner}.tar" if owner else "is that of an unknown tar"
        elif (len(index.records), index.tar_bytes) != (shard.samples, shard.bytes):
            wrong = f"knows {counted(len(index.records), 'sample')} in {index.tar_bytes:,} bytes"
            wrong += f" in place of {shard.samples:,} in {shard.bytes:,}"
        elif index.to_bytes() != data:
            wrong = "has something in its padding"
        else:
            return index
        self._add(self._index, None, wrong)
        return None

    def _check_tar(self, index: Index | None, quick: bool) -> None:
        """Read all of the tar once; one that is not whole is looked through again, if its index tells where."""
        path, scanned, why, at = self._set.folder / self._tar, None, "", len(self.problems)

        def see(sample: Sample) -> None:
            self._check_sample(sample.key, sample.image, sample.label)
            self._ticked += 1
            self._tick(1, 0)

        if not quick:
            try:
                scanned = scan_tar(path, self._set.image_member, see)
            except ShardError as error:
                why = _got(error)
        if scanned is None:
            with FileIO(path) as file:
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
        if index is None or self.whole:
            self._add(self._tar, None, f"cannot be used: {why}")
            return
        with FileIO(path) as file:
            self._look_through(file, size, index)

    def _look_through(self, file: FileIO, size: int, index: Index) -> None:
        """Say which samples are not what the index says."""
        before = len(self.problems)
        for row, record in enumerate(index.records):
            name, found = f"row {row}", dict[str, bytes]()
            places = {what: (int(record[f"{what}_offset"]), int(record[f"{what}_size"])) for what in ("image", "json")}
            if max(offset + length for offset, length in places.values()) > size:
                left = f"{len(index.records) - row:,} of {counted(len(index.records), 'sample')}"
                self._add(self._tar, None, f"is cut off: {left} are gone")
                return
            for what, (offset, length) in places.items():
                if what == "json" and not length:
                    found[what] = b""
                    continue
                key = _member_key(file, offset, length)
                data = os.pread(file.fileno(), -(-length // BLOCK) * BLOCK, offset)
                if key is None:
                    self._add(self._tar, name, f"has a damaged tar header before its {what}")
                elif what == "image":
                    name = key
                elif key != name and not name.startswith("row "):
                    self._add(self._tar, name, f"is followed by the json of '{key}'")
                if any(data[length:]):
                    self._add(self._tar, name, f"has something in the padding after its {what}")
                if zlib.crc32(data[:length]) == record[f"{what}_crc32"]:
                    found[what] = data[:length]
                else:
                    self._add(self._tar, name, f"has {what} bytes of another crc32: its bytes changed")
            self._check_sample(name, found.get("image"), found.get("json"))
        if len(self.problems) == before and size == self.shard.bytes:
            self._add(self._tar, None, "differs where no sample is")

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
        bits = [attributes.get(name) if isinstance(attributes, dict) else None for name in shards.attributes]
        if not all(type(bit) in (int, bool) and bit in (0, 1) for bit in bits):
            return None
        return [number for number, bit in enumerate(bits) if bit]
    if shards.classes:
        label = meta.get("label")
        return [label] if type(label) is int and 0 <= label < len(shards.classes) else None
    return []


# Over all shards


def _over_all(shards: ShardSet, checks: list[ShardCheck], quick: bool) -> Iterator[Problem]:
    content = json.loads((shards.folder / SHARDSET_FILE).read_bytes())
    for split, found in shards.splits.items():
        said = content["splits"][split].get("samples")  # For those who read it without leanstream.
        if said != found.total:
            yield Problem(SHARDSET_FILE, None, f"counts {said} samples in {split}; its shards hold {found.total:,}")
    ours = {f"{one.shard.name}.tar" for one in checks}
    for path in sorted(shards.folder.glob("*.tar")):
        if path.name not in ours:  # Readers that take all of a folder would read it too.
            yield Problem(path.name, None, f"is not of this set: {SHARDSET_FILE} does not name it")
    beside = files_beside(shards)
    if REJECTED_FILE not in dict(beside):  # An older set recorded how many there are, and no digest.
        path = shards.folder / REJECTED_FILE
        lines = path.read_bytes().splitlines() if path.exists() else []
        if len(lines) != shards.rejected:
            yield Problem(REJECTED_FILE, None, f"has {counted(len(lines), 'line')} in place of {shards.rejected:,}")
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
            yield Problem(f"{other.shard.name}.tar", keys[1], f"has a key that stands in {one.shard.name}.tar too")


def _label_counts(shards: ShardSet, checks: list[ShardCheck]) -> Iterator[Problem]:
    """Whether as many samples have each label as `shardset.json` says."""
    for split, said in (labels_of_all([shards]) or {}).items():
        mine = [one for one in checks if one.split == split]
        if any(one.labelled != one.shard.samples for one in mine):
            continue  # Samples are damaged, and have been reported.
        for (name, should), has in zip(said.items(), np.sum([one.labels for one in mine], 0).tolist(), strict=True):
            if has != should:
                what = f"counts {counted(should, 'sample')} with '{name}' in {split}; {has:,} have it"
                yield Problem(SHARDSET_FILE, None, what)
