"""The libraries that people have read our sets unchanged, made ones and the real ones."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.format import SUFFIX, ShardSet
from shard_tool.cli import main

Make = Callable[..., str]
Rejections = Callable[[Path], dict[str, str]]

ROOT = Path(__file__).parents[3]
PRINTS_ITS_PEAK = """
import re, sys
from shard_tool.cli import main
code = main()
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""
SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""Our names, and those of `datasets`."""

# webdataset leaves its files to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


def web(folder: Path, split: str, member: str, *, bare: bool = False) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, folder.glob(f"{split}-*.tar")))
    dataset = webdataset.WebDataset(shards, shardshuffle=False).decode(*([] if bare else ["rgb8"]))
    yield from dataset.to_tuple("__key__", member, "json")


def hub(folder: Path, split: str, *, bare: bool = False) -> Iterator[dict[str, Any]]:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.load_dataset(str(folder), split=SPLITS[split], streaming=True)
    yield from dataset.cast_column("jpg", datasets.Image(decode=False)) if bare else dataset


@pytest.fixture
def source(photos: Path) -> Path:
    numbers = range(60)
    attributes = [f"{number:05d}.jpg,{1 if number % 2 else -1},{1 if number % 3 else -1}" for number in numbers]
    (photos / "list_attr_celeba.csv").write_text("\n".join(["image_id,Male,Smiling", *attributes]))
    partition = [f"{number:05d}.jpg,{number % 3}" for number in numbers]
    (photos / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *partition]))
    (photos / "broken.jpg").write_bytes(b"no photo")
    return photos


@pytest.mark.parametrize("encoding", list(SUFFIX))
def test_webdataset_reads_every_sample(source: Path, tmp_path: Path, make: Make, encoding: str) -> None:
    make(source, tmp_path / "set", "--size", 16, "--shard-samples", 7, "--encode", encoding)
    for number, split in enumerate(SPLITS):
        found = {key: (image, meta) for key, image, meta in web(tmp_path / "set", split, SUFFIX[encoding])}
        assert sorted(found) == sorted(f"{'ab'[n % 2]}/{n:05d}" for n in range(number, 60, 3))
        for key, (image, meta) in found.items():
            assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
            at = int(key[2:])
            assert meta["attributes"] == {"Male": at % 2, "Smiling": int(at % 3 != 0)}


@pytest.mark.parametrize("encoding", list(SUFFIX))
def test_datasets_reads_every_sample(source: Path, tmp_path: Path, make: Make, encoding: str) -> None:
    make(source, tmp_path / "set", "--size", 16, "--shard-samples", 7, "--encode", encoding)
    for number, split in enumerate(SPLITS):
        found = list(hub(tmp_path / "set", split))
        assert sorted(row["__key__"] for row in found) == sorted(f"{'ab'[n % 2]}/{n:05d}" for n in range(number, 60, 3))
        for row in found:
            assert np.asarray(row[SUFFIX[encoding]]).shape == (16, 16, 3)
            assert row["json"]["attributes"]["Male"] == int(row["__key__"][2:]) % 2


def test_datasets_reads_a_set_into_memory_and_by_its_files(source: Path, tmp_path: Path, make: Make) -> None:
    datasets = pytest.importorskip("datasets")
    make(source, tmp_path / "set", "--size", 16, "--no-json")
    whole = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in whole.items()} == {"train": 20, "validation": 20, "test": 20}
    files = {"train": str(tmp_path / "set" / "train-*.tar")}
    train = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(train) == 20


@pytest.fixture(scope="module", params=[64, 128])
def celeba_set(request: pytest.FixtureRequest, celeba: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("celeba") / f"celeba-{request.param}"
    assert main(["make-shards", str(celeba), "--out", str(out), "--size", str(request.param), "--quiet"]) == 0
    return out


def test_celeba_is_kept_whole_and_read_by_both_libraries(celeba_set: Path) -> None:
    opened = ShardSet.open(celeba_set)
    assert {name: split.total for name, split in opened.splits.items()} == {"train": 8060, "val": 1030, "test": 910}
    assert len(opened.attributes) == 40
    assert opened.rejected == 0
    size = opened.image_size
    keys: Counter[str] = Counter()
    for split in SPLITS:
        for key, image, meta in web(celeba_set, split, "jpg", bare=True):
            keys[key] += 1
            assert Image.open(io.BytesIO(image)).size == (size, size)
            assert set(meta["attributes"]) == set(opened.attributes)
    assert len(keys) == keys.total() == 10_000
    for split in SPLITS:
        for row in hub(celeba_set, split, bare=True):
            keys[row["__key__"]] += 1
            assert Image.open(io.BytesIO(row["jpg"]["bytes"])).size == (size, size)
            assert set(row["json"]["attributes"]) == set(opened.attributes)
    assert len(keys) == 10_000
    assert set(keys.values()) == {2}


def test_everything_odd_is_a_sample_or_a_rejection(odd: Path, tmp_path: Path, rejections: Rejections) -> None:
    out = tmp_path / "odd"
    command = [sys.executable, "-c", PRINTS_ITS_PEAK, "make-shards", str(odd), "--out", str(out), "--threads", "4"]
    shown = subprocess.run([*command, "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert int(shown.stdout) < 150 * 1024, "KiB; the 160-megapixel PNG alone would take 460 MiB"
    opened = ShardSet.open(out)
    rejected = rejections(out)
    kept = {meta["source"] for split in opened.splits for _, _, meta in web(out, split, "jpg")}
    files = {path.relative_to(odd).as_posix() for path in odd.rglob("*") if path.is_file()}
    assert kept | set(rejected) == files
    assert not kept & set(rejected)
    by_folder = {
        folder: {rejected.get(path) for path in files if path.startswith(folder)} for folder in os.listdir(odd)
    }
    assert by_folder == {
        "appledouble": {"not an image"},
        "zero_byte": {"empty file"},
        "bomb_160MP": {"too many pixels"},
        "tiny": {"smaller than the target"},
        "gray350": {None},
        "webp_named_jpg": {None},
        "png_named_jpg_rgba": {None},
        "mixed_wild": {None, "smaller than the target"},
    }
    assert json.loads((out / "shardset.json").read_text())["rejected"] == len(rejected)
