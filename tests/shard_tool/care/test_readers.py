"""The libraries that people have read our sets unchanged, made ones and the real ones."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.format import SUFFIX, ShardSet, Split
from pipeline.tar import ShardWriter
from shard_tool.cli import main
from tests.helpers import encode, make_image, make_shard_set

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


# Asked by `verify --readers`


@pytest.mark.parametrize("encoding", list(SUFFIX))
@pytest.mark.parametrize("labels", [{}, {"attributes": (), "classes": ("a", "b")}, {"attributes": ()}])
def test_both_libraries_read_a_set_as_we_do(
    tmp_path: Path, encoding: str, labels: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_shard_set(tmp_path / "set [1]", encoding=encoding, **labels)
    before = sorted((tmp_path / "set [1]").iterdir())
    assert main(["verify", str(tmp_path / "set [1]"), "--readers"]) == 0, capsys.readouterr()
    assert "as written and as webdataset and datasets read it" in capsys.readouterr().out
    assert sorted((tmp_path / "set [1]").iterdir()) == before


class Odd(NamedTuple):
    """What a library would make of the samples of a set if it were wrong."""

    change: Callable[[list[dict[str, Any]]], object]
    said: str


ODD = {
    "key": Odd(lambda found: found[1].update(__key__="other"), "other is a sample to webdataset alone"),
    "skipped": Odd(lambda found: found.pop(1), "is skipped by webdataset"),
    "image": Odd(lambda found: found[1].update(jpg=found[2]["jpg"]), "has another image for webdataset"),
    "no image": Odd(lambda found: found[1].pop("jpg"), "has another image for webdataset"),
    "json": Odd(lambda found: found[1].update(json=found[2]["json"]), "has another json for webdataset"),
    "tar": Odd(lambda found: [found.remove(one) for one in found[:] if "000002" in one["__url__"]], "no sample for"),
}


@pytest.mark.parametrize("odd", list(ODD))
def test_what_a_library_reads_otherwise_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], odd: str
) -> None:
    make_shard_set(tmp_path / "set", samples={"train": 40})
    read = webdataset.tariterators.group_by_keys

    def reads_otherwise(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        found = list(read(*arguments, **options))
        ODD[odd].change(found)
        return found

    monkeypatch.setattr(webdataset.tariterators, "group_by_keys", reads_otherwise)
    assert main(["verify", str(tmp_path / "set"), "--readers"]) == 1
    shown = capsys.readouterr().out
    assert ODD[odd].said in shown
    assert f"{tmp_path / 'set'} is whole, but not read alike by all: " in shown
    assert "datasets" not in shown.replace("webdatasets", "")


def test_a_sample_that_only_one_library_skips_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`datasets` takes names that begin with two underscores for hidden files."""
    made = make_shard_set(tmp_path / "set", samples={"train": 8}, attributes=())
    writer = ShardWriter(made.folder, "train-000000")
    for number, key in enumerate(("a", "__b", "c")):
        writer.add(key, encode(make_image("train", number, 16), "jpeg"), "jpg", b"{}")
    shard = writer.close()
    assert shard is not None
    ShardSet(**{**vars(made), "splits": {"train": Split.of([vars(shard)])}}).save()
    assert main(["verify", str(made.folder), "--json", "--readers"]) == 1
    expected = {"file": "train-000000.tar", "key": "__b", "problem": "is skipped by datasets"}
    assert json.loads(capsys.readouterr().out)["problems"] == [expected]
    assert main(["verify", str(made.folder)]) == 0


def test_what_stops_a_library_is_a_problem_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, suffix in enumerate(("jpg", "jpg", "jpeg")):
            member = tarfile.TarInfo(f"{number}.{suffix}")
            image = encode(make_image("train", number, 16), "jpeg")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
    assert main(["index", str(tmp_path)]) == 0
    assert "a.tar stops datasets, or the tar after it does: ValueError: " in capsys.readouterr().out
    assert main(["verify", str(tmp_path), "--readers"]) == 1
    assert "is whole, but not read alike by all: 1 problem in 1 file." in capsys.readouterr().out


def test_a_damaged_shard_is_not_given_to_the_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_shard_set(tmp_path / "set").folder
    (folder / "train-000001.tar").write_bytes(b"no tar")
    assert main(["verify", str(folder), "--readers"]) == 1
    shown = capsys.readouterr().out
    assert "is damaged" in shown
    assert "webdataset" not in shown


def test_a_library_that_is_missing_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_shard_set(tmp_path / "set").folder
    monkeypatch.setattr("shard_tool.care.readers.importlib.util.find_spec", lambda name: name != "datasets" or None)
    assert main(["verify", str(folder), "--readers"]) == 2
    assert "got no datasets. Install it: pip install 'leanstream[datasets]'." in capsys.readouterr().err
    (folder / "shardset.json").unlink()
    assert main(["index", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "webdataset reads 3 tars of it as leanstream does" in shown
    assert "not compared with datasets, not installed here" in shown


def test_nothing_is_left_in_the_home_of_the_user(tmp_path: Path) -> None:
    """In a process of its own, in which datasets is not loaded yet."""
    make_shard_set(tmp_path / "set")
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "https_proxy": "http://[::1]:9"}
    command = [sys.executable, "-m", "shard_tool", "verify", str(tmp_path / "set"), "--readers", "--quiet"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    assert [path for path in home.rglob("*") if path.is_file()] == []


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
    hidden = {path for path in files if Path(path).name.startswith("._")}
    assert kept | set(rejected) == files - hidden
    assert not kept & set(rejected)
    by_folder = {
        folder: {rejected.get(path) for path in files if path.startswith(folder)} for folder in os.listdir(odd)
    }
    assert by_folder == {
        "appledouble": {None},
        "zero_byte": {"empty file"},
        "bomb_160MP": {"too many pixels"},
        "tiny": {"smaller than the target"},
        "gray350": {None},
        "webp_named_jpg": {None},
        "png_named_jpg_rgba": {None},
        "mixed_wild": {None, "smaller than the target"},
    }
    assert json.loads((out / "shardset.json").read_text())["rejected"] == len(rejected)
