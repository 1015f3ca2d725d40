"""Foreign sets are written and read back by the webdataset library itself."""

import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray
from PIL import Image

from pipeline import StreamingLoader
from pipeline.errors import ShardError
from pipeline.format import ShardSet
from shard_tool.care.inspect import describe
from shard_tool.cli import main
from shard_tool.sources.protocol import MOST_CLASSES
from tests.helpers import encode, make_image

# webdataset leaves its files to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)
SIZE = 16
Samples = Iterable[Mapping[str, Any]]
Run = Callable[..., str]


def image(number: int, encoding: str = "jpeg", size: int = SIZE) -> bytes:
    return encode(make_image("train", number, size), encoding)


def write(path: Path, samples: Samples) -> Path:
    """A tar as webdataset writes it: PAX entries with the time of day in them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as sink:
        for sample in samples:
            sink.write(sample)
    return path


def samples(numbers: Iterable[int], encoding: str = "jpeg", suffix: str = "jpg", **more: Any) -> Samples:
    for number in numbers:
        extra = {name: make(number) for name, make in more.items()}
        yield {"__key__": f"{number:06d}", suffix: image(number, encoding), **extra}


def decoded(folder: Path, names: Iterable[str], members: str) -> dict[str, NDArray[np.uint8]]:
    """Key to image, by webdataset, of tars whose keys are distinct."""
    tars = [str(folder / f"{name}.tar") for name in names]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("__key__", members)
    return dict(dataset)


def streamed(shards: ShardSet, split: str = "train", **settings: Any) -> dict[str, tuple[NDArray[np.uint8], Any]]:
    """Key to image and label, by our loader, of one epoch."""
    found = {}
    with StreamingLoader(shards, split=split, batch_size=1, threads=2, **settings) as loader:
        for batch in itertools.islice(loader, loader.samples):
            label = None if batch.labels is None else batch.labels[0].tolist()
            found[batch.keys[0]] = batch.images[0].permute(1, 2, 0).numpy().copy(), label
    return found


@pytest.fixture
def index(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `shard_tool index`, expects `code`, and returns what was printed: the error if there was to be one."""

    def run(folder: Path, *arguments: str, code: int = 0) -> str:
        assert main(["index", str(folder), "--threads", "2", *arguments]) == code
        out, err = capsys.readouterr()
        assert not code or not out
        return str(err if code else out)

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.tar")}


# What is read


@pytest.mark.parametrize(
    ("encoding", "suffix"),
    [("jpeg", "jpg"), ("jpeg", "jpeg"), ("jpeg", "JPG"), ("png", "png"), ("webp", "webp"), ("raw", "npy")],
)
def test_the_loader_reads_what_webdataset_reads(tmp_path: Path, index: Run, encoding: str, suffix: str) -> None:
    for shard in range(3):
        write(tmp_path / f"{shard:06d}.tar", samples(range(10 * shard, 10 * shard + 10), encoding, suffix))
    before = snapshot(tmp_path)
    index(tmp_path)
    assert snapshot(tmp_path) == before, "no tar is touched"
    shards = ShardSet.open(tmp_path)
    assert (shards.image_size, shards.encoding, shards.split("train").total) == (SIZE, encoding, 30)
    theirs = decoded(tmp_path, [f"{shard:06d}" for shard in range(3)], suffix.lower())
    ours = streamed(shards)
    assert ours.keys() == theirs.keys()
    for key, (pixels, _) in ours.items():
        tolerance = 2 if encoding == "jpeg" else 0  # Another libjpeg.
        assert abs(pixels.astype(int) - theirs[key]).max() <= tolerance


def test_jpeg_and_png_may_be_mixed_and_are_told_apart_by_content(tmp_path: Path, index: Run) -> None:
    mixed = [*samples(range(8)), *samples(range(8, 12), "png", "png"), *samples(range(12, 14), "png", "jpg")]
    write(tmp_path / "mixed.tar", mixed)
    assert "8 jpeg, 6 png" in index(tmp_path)
    ours = streamed(ShardSet.open(tmp_path))
    theirs = decoded(tmp_path, ["mixed"], "jpg;png")
    assert len(ours) == 14
    for key, (pixels, _) in ours.items():
        assert abs(pixels.astype(int) - theirs[key]).max() <= 2


def test_long_and_foreign_keys_are_read_back_whole(tmp_path: Path, index: Run) -> None:
    keys = ["a/" + "x" * 150, "Gesicht/jürgen", "d/" * 60 + "deep", "plain"]
    pax = [{"__key__": key, "jpg": image(number)} for number, key in enumerate(keys)]
    write(tmp_path / "pax.tar", pax)
    for format_, name in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax2")):
        with tarfile.open(tmp_path / f"{name}.tar", "w", format=format_) as tar:
            for number, key in enumerate(keys):
                add(tar, f"{key}-{name}.jpg", image(number))
    index(tmp_path)
    found = streamed(ShardSet.open(tmp_path))
    assert sorted(found) == sorted([*keys, *(f"{key}-{name}" for key in keys for name in ("gnu", "pax2"))])


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_what_is_no_sample_is_left_alone(tmp_path: Path, index: Run) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("__meta__", "__info__/a.json", "README", "a/._0.jpg", "a/.DS_Store"):
            add(tar, name, b"not a sample")
        for number in range(3):
            add(tar, f"a/{number}.txt", b"a caption")
            add(tar, f"a/{number}.jpg", image(number))
            add(tar, f"a/{number}.emb.bin", b"0" * 3000)
        add(tar, "./b.jpg", image(3))
    assert "4 images" in index(tmp_path)
    assert sorted(streamed(ShardSet.open(tmp_path))) == ["./b", "a/0", "a/1", "a/2"]


def test_one_of_several_images_can_be_named(tmp_path: Path, index: Run) -> None:
    pairs = [
        {"__key__": f"{number}", "Input.jpg": image(number), "mask.png": image(50 + number, "png")}
        for number in range(4)
    ]
    write(tmp_path / "pairs.tar", pairs)
    message = index(tmp_path, code=1)
    assert "must hold one image for every sample; got input.jpg, mask.png for '0'" in message
    assert "--image" in message
    assert not list(tmp_path.glob("*.index"))
    prints = set()
    for suffix, first in (("mask.png", 50), ("input.jpg", 0)):
        (tmp_path / "shardset.json").unlink(missing_ok=True)
        index(tmp_path, "--image", suffix)
        shards = ShardSet.open(tmp_path)
        prints.add(shards.fingerprint)
        for key, (pixels, _) in streamed(shards).items():
            assert abs(pixels.astype(int) - make_image("train", first + int(key), SIZE)).max() <= 6
        assert "not change" in index(tmp_path), "the image is remembered"
    assert len(prints) == 2, "other images are another set"


def test_suffixes_in_upper_case_are_those_that_webdataset_sees(tmp_path: Path, index: Run) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(4):
            add(tar, f"{number}.JPG", image(number))
            add(tar, f"{number}.CLS", b"%d" % (number % 2))
    shown = index(tmp_path)
    assert "2 classes" in shown
    assert "webdataset and datasets read 1 tar of it as leanstream does" in shown
    found = streamed(ShardSet.open(tmp_path), labels=True)
    assert {key: label for key, (_, label) in found.items()} == {str(number): number % 2 for number in range(4)}


def test_what_is_left_out_is_counted(tmp_path: Path, index: Run) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("__meta__", "__x__/0.jpg", "README", "a/._0.jpg", "a/.DS_Store"):
            add(tar, name, image(1))
        add(tar, "__y.jpg", image(2))
        add(tar, "0.jpg", image(3))
    shown = index(tmp_path)
    assert "left out  5 files that no reader takes for a part of a sample: " in shown
    assert "2 metadata (__name__)" in shown
    assert "2 hidden" in shown
    assert "1 no extension" in shown
    assert "datasets skips 1 sample, whose names begin with __" in shown
    assert "x.tar __y is skipped by datasets" in shown


def test_tars_in_one_file_are_refused_and_not_indexed_by_half(tmp_path: Path, index: Run) -> None:
    first, second = (write(tmp_path / f"{n}", samples([n])).read_bytes() for n in range(2))
    (tmp_path / "both.tar").write_bytes(first + second)
    assert "both.tar must end with its end mark" in index(tmp_path, code=2)
    assert not (tmp_path / "shardset.json").exists()
    hole = bytearray(write(tmp_path / "both.tar", samples(range(4), "png", "png")).read_bytes())
    with tarfile.open(tmp_path / "both.tar") as tar:
        third = list(tar)[2]
    hole[third.offset : third.offset + 512] = bytes(512)
    (tmp_path / "both.tar").write_bytes(hole)
    assert "both.tar must end with its end mark" in index(tmp_path, code=2)
    (tmp_path / "both.tar").write_bytes(first + bytes(20_000))
    assert "1 image of" in index(tmp_path)


# Labels


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"cls": lambda number: b"%d" % (number % 3)}, lambda number: number % 3),
        ({"cls": lambda number: b" %d\n" % (number % 3)}, lambda number: number % 3),
        ({"json": lambda number: json.dumps({"label": number % 3}).encode()}, lambda number: number % 3),
        (
            {"json": lambda _: b'{"width": 3}', "cls": lambda number: b"%d" % (number % 3), "txt": lambda _: b"a face"},
            lambda number: number % 3,
        ),
        (
            {"json": lambda number: json.dumps({"attributes": {"a": number % 2, "b": 1}}).encode()},
            lambda number: [number % 2, 1],
        ),
    ],
    ids=["cls", "cls with spaces", "label", "cls beside foreign json", "attributes"],
)
def test_labels_are_found(tmp_path: Path, index: Run, members: dict[str, Any], expected: Callable[[int], Any]) -> None:
    for shard in range(2):
        write(tmp_path / f"{shard}.tar", samples(range(6 * shard, 6 * shard + 6), **members))
    index(tmp_path)
    shards = ShardSet.open(tmp_path)
    assert shards.classes == () or shards.classes == ("0", "1", "2")
    found = streamed(shards, labels=True)
    assert len(found) == 12
    for key, (_, label) in found.items():
        assert label == expected(int(key))


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"json": lambda _: b'{"width": 3}'}, "none\n"),
        ({"txt": lambda _: b"a caption"}, "none\n"),
        ({"cls": lambda _: b"dog"}, "none\n"),
        ({"json": lambda _: b"no json"}, "none\n"),
        ({"cls": lambda number: b"7" if number else b"dog"}, "only 5 of 6 samples"),
        ({"cls": lambda number: b"%d" % (number + MOST_CLASSES)}, "class numbers must be below"),
        ({"json": lambda n: json.dumps({"attributes": {"ab"[n % 2]: 1}}).encode()}, "other attributes"),
    ],
)
def test_other_members_are_no_labels(tmp_path: Path, index: Run, members: dict[str, Any], why: str) -> None:
    write(tmp_path / "x.tar", samples(range(6), **members))
    assert why in index(tmp_path)
    shards = ShardSet.open(tmp_path)
    assert not shards.attributes
    assert not shards.classes
    assert len(streamed(shards)) == 6


def test_shares_of_attributes_are_counted(tmp_path: Path, index: Run) -> None:
    meta = {"json": lambda number: json.dumps({"attributes": {"a": number % 2, "b": int(number < 2)}}).encode()}
    write(tmp_path / "train-0.tar", samples(range(6), **meta))
    write(tmp_path / "val-0.tar", samples(range(6, 8), **meta))
    index(tmp_path)
    assert describe(ShardSet.open(tmp_path))["attributes"] == {"a": 0.5, "b": 0.25}


# Splits


def test_names_say_the_split(tmp_path: Path, index: Run) -> None:
    names = {
        "train": ["train-0", "training_1", "faces-0", "trainee", "latest-test"],
        "val": ["val-0", "validation0", "VALID.1"],
        "test": ["test", "test-1"],
    }
    for number, name in enumerate(itertools.chain(*names.values())):
        write(tmp_path / f"{name}.tar", samples([number]))
    index(tmp_path)
    found = ShardSet.open(tmp_path).splits
    assert {split: sorted(name.decode() for name in content.names) for split, content in found.items()} == {
        split: sorted(content) for split, content in names.items()
    }


def test_globs_say_the_split(tmp_path: Path, index: Run) -> None:
    for number in range(10):
        write(tmp_path / f"{number:03d}.tar", samples([number]))
    index(tmp_path, "--split", "val=00[67].tar", "--split", "test=008.tar", "--split", "test=009")
    shards = ShardSet.open(tmp_path)
    assert {name: split.total for name, split in shards.splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(streamed(shards, "val")) == ["000006", "000007"]
    assert "not change" in index(tmp_path), "the globs are remembered"
    assert "in another split: 005.tar, 006.tar, 007.tar" in index(tmp_path, "--split", "val=005.tar", code=2)


@pytest.mark.parametrize("rule", ["val", "dev=*", "val=nothing*"])
def test_a_split_that_says_nothing_is_an_error(tmp_path: Path, index: Run, rule: str) -> None:
    write(tmp_path / "0.tar", samples([0]))
    assert rule in index(tmp_path, "--split", rule, code=2)


def test_a_tar_is_of_one_split(tmp_path: Path, index: Run) -> None:
    write(tmp_path / "0.tar", samples([0]))
    assert "one split" in index(tmp_path, "--split", "val=0*", "--split", "test=*", code=2)


# What is refused


def large(folder: Path) -> None:
    write(folder / "a.tar", samples(range(3)))
    write(folder / "b.tar", [*samples(range(3)), {"__key__": "odd", "jpg": image(3, size=24)}])


def large_in_another_tar(folder: Path) -> None:
    write(folder / "a.tar", samples(range(3)))
    write(folder / "b.tar", [{"__key__": "odd", "jpg": image(3, size=24)}])


def oblong(folder: Path) -> None:
    write(folder / "a.tar", [{"__key__": "odd", "png": encode(make_image("train", 1, SIZE)[:-2], "png")}])


def no_image(folder: Path) -> None:
    write(folder / "a.tar", [{"__key__": "odd", "jpg": b"this is a text"}])


def cmyk(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (SIZE, SIZE)).save(buffer, "JPEG")
    write(folder / "a.tar", [{"__key__": "odd", "jpg": buffer.getvalue()}])


def deep(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE), 40_000, np.uint16)).save(buffer, "PNG")
    write(folder / "a.tar", [{"__key__": "odd", "png": buffer.getvalue()}])


def grey_array(folder: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((SIZE, SIZE), np.uint8))
    write(folder / "a.tar", [{"__key__": "odd", "npy": buffer.getvalue()}])


def both_kinds(folder: Path) -> None:
    write(folder / "a.tar", samples(range(3)))
    write(folder / "b.tar", samples(range(3), "raw", "npy"))


def compressed(folder: Path) -> None:
    write(folder / "a.tar.gz", samples(range(3)))


def compressed_in_secret(folder: Path) -> None:
    write(folder / "a.tar.gz", samples(range(3))).rename(folder / "a.tar")


def folders(folder: Path) -> None:
    write(folder / "train" / "a.tar", samples(range(3)))


def no_tars(folder: Path) -> None:
    folder.mkdir()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (large, "sample 'odd' of .*b.tar must have the size of '000000', 16x16; got 24x24"),
        (large_in_another_tar, "sample 'odd' of .*b.tar must have the size of '000000', 16x16; got 24x24"),
        (oblong, "sample 'odd' of .*a.tar must be a square; got 16x14"),
        (no_image, "got bytes that are no JPEG"),
        (cmyk, "got a JPEG in CMYK"),
        (deep, "got a PNG of more than 8 bits"),
        (grey_array, "got an array of shape"),
        (both_kinds, "npy in all samples or in none"),
        (compressed, "must not be compressed.* got a.tar.gz"),
        (compressed_in_secret, "must not be compressed.* got a.tar"),
        (folders, "side by side .*; got train/a.tar"),
        (no_tars, "must hold .tar files; got none"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(
    tmp_path: Path, index: Run, make: Callable[[Path], None], what: str
) -> None:
    folder = tmp_path / "foreign"
    make(folder)
    before = sorted(folder.rglob("*"))
    message = index(folder, code=2)
    assert re.search(what, message), message
    assert f"shard_tool make-shards {folder} --size " in message
    assert sorted(folder.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["a.jpg", "a.jpg"], "must hold each member of a sample once; got 'a.jpg'"),
        (["a.jpg", "a.JPG"], "must hold each member of a sample once; got 'a.JPG'"),
        (["a.jpg", "b.jpg", "a.json"], "side by side and once; got 'a' a second time"),
        (["a.jpg", "b.json"], "must hold an image for every sample; got none for 'b'"),
        (["a.jpg", "b.txt"], "must hold an image for every sample; got none for 'b'"),
    ],
)
def test_a_malformed_tar_is_an_error_that_names_the_sample(
    tmp_path: Path, index: Run, names: list[str], what: str
) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name in names:
            add(tar, name, image(1))
    message = index(tmp_path, code=1)
    assert what in message
    assert "bad.tar" in message


def test_equal_keys_in_two_tars_are_two_samples(tmp_path: Path, index: Run) -> None:
    for shard in range(2):
        write(tmp_path / f"{shard}.tar", samples(range(4)))
    assert "8 images" in index(tmp_path)


def test_a_tar_that_was_cut_off_at_any_block_is_an_error(tmp_path: Path, index: Run) -> None:
    path = write(tmp_path / "cut.tar", samples(range(2), "png", "png"))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    for size in range(512, end + 1, 512):
        path.write_bytes(whole[:size])
        assert "must" in index(tmp_path, code=1), size
    path.write_bytes(whole[: end + 512])
    index(tmp_path)


def test_a_damaged_header_between_samples_is_an_error_and_no_short_set(tmp_path: Path, index: Run) -> None:
    path = write(tmp_path / "bad.tar", samples(range(4), "png", "png"))
    with tarfile.open(path) as tar:
        third = list(tar)[2]
    data = bytearray(path.read_bytes())
    for block in range(third.offset, third.offset_data, 512):
        data[block + 3] ^= 255
    path.write_bytes(data)
    assert "must be a whole tar" in index(tmp_path, code=1)


def test_a_file_that_only_looks_like_an_index_is_never_replaced(tmp_path: Path, index: Run) -> None:
    write(tmp_path / "a.tar", samples(range(3)))
    (tmp_path / "a.index").write_text("mine")
    assert "a.index must be an index of leanstream; got another file" in index(tmp_path, code=2)
    assert (tmp_path / "a.index").read_text() == "mine"
    assert not (tmp_path / "shardset.json").exists()


def test_a_description_that_is_not_ours_is_never_replaced(tmp_path: Path, index: Run) -> None:
    write(tmp_path / "a.tar", samples(range(3)))
    (tmp_path / "shardset.json").write_text('{"format": "wids"}')
    index(tmp_path, code=1)
    assert (tmp_path / "shardset.json").read_text() == '{"format": "wids"}'


# Again


def test_indexing_again_changes_nothing_and_says_so(tmp_path: Path, index: Run) -> None:
    write(tmp_path / "a.tar", samples(range(3)))
    write(tmp_path / "b.tar", samples(range(3)))
    assert "is indexed: 6 images of 16 px in 2 tars" in index(tmp_path)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert "indexed already, and its 2 tars did not change" in index(tmp_path)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before
    assert index(tmp_path, "--quiet") == ""
    (tmp_path / "b.index").unlink()
    assert "1 lost or damaged index written again" in index(tmp_path)
    assert (tmp_path / "b.index").read_bytes() == before["b.index"][1]


def test_a_lost_index_is_rebuilt_by_the_loader(tmp_path: Path, index: Run) -> None:
    write(tmp_path / "a.tar", samples(range(6), cls=lambda number: b"%d" % (number % 2)))
    index(tmp_path)
    written = (tmp_path / "a.index").read_bytes()
    (tmp_path / "a.index").unlink()
    assert {key: label for key, (_, label) in streamed(ShardSet.open(tmp_path), labels=True).items()} == {
        f"{number:06d}": number % 2 for number in range(6)
    }
    assert (tmp_path / "a.index").read_bytes() == written


def test_tars_that_changed_are_named_and_nothing_is_replaced(tmp_path: Path, index: Run) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.tar", samples(range(3)))
    index(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".tar"}
    write(tmp_path / "b.tar", samples(range(4)))
    write(tmp_path / "d.tar", samples(range(4)))
    (tmp_path / "c.tar").unlink()
    assert "got changed: b.tar; new: d.tar; missing: c.tar" in index(tmp_path, code=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".tar"} == before
    (tmp_path / "shardset.json").unlink()
    assert "11 images" in index(tmp_path), "deleting the description makes it another set"


def test_a_set_of_make_shards_has_its_indexes(shard_set: Callable[..., ShardSet], index: Run) -> None:
    shards = shard_set()
    before = {path.name: path.read_bytes() for path in shards.folder.iterdir()}
    assert "make-shards wrote" in index(shards.folder)
    assert {path.name: path.read_bytes() for path in shards.folder.iterdir()} == before


def test_the_printed_lines_open_the_set(tmp_path: Path, index: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.tar", samples(range(5)))
    write(tmp_path / "b.tar", samples(range(5, 10), "png", "png"))
    index(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    assert "indexed" in capsys.readouterr().out
    lines = describe(ShardSet.open(tmp_path))["open_with"]["webdataset"]
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)  # As a person pastes them.
    assert len(list(scope["samples"])) == 10


def test_an_indexed_set_is_whole_and_what_damages_it_is_found(
    tmp_path: Path, index: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {"cls": lambda number: b"%d" % (number % 2), "json": lambda _: b"no json", "txt": lambda _: b"a face"}
    grey = encode(make_image("train", 1, SIZE), "png")
    with Image.open(io.BytesIO(grey)) as picture:
        buffer = io.BytesIO()
        picture.convert("RGBA").save(buffer, "PNG")
    extra = [{"__key__": "x" * 120, "png": buffer.getvalue(), "cls": b"1"}, {"__key__": "ü", "png": grey, "cls": b"0"}]
    write(tmp_path / "a.tar", [*samples(range(5), **members), *extra])
    write(tmp_path / "b.tar", samples(range(5), **members))  # The same keys.
    index(tmp_path)
    assert main(["verify", str(tmp_path)]) == 0, capsys.readouterr().err
    data = bytearray((tmp_path / "b.tar").read_bytes())
    data[data.index(b"\xff\xd8") + 30] ^= 1
    (tmp_path / "b.tar").write_bytes(data)
    assert main(["verify", str(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "b.tar 000000 has image bytes of another crc32" in shown
    assert "Next: copy its tars again, then: shard_tool index" in shown


def test_a_set_of_named_images_is_whole(tmp_path: Path, index: Run) -> None:
    write(tmp_path / "a.tar", [{"__key__": "0", "left.jpg": image(0), "right.jpg": image(1)}])
    index(tmp_path, "--image", "right.jpg")
    (tmp_path / "a.index").unlink()
    index(tmp_path)
    assert main(["verify", str(tmp_path), "--quiet"]) == 0


def test_a_damaged_sample_is_found_when_it_is_read(tmp_path: Path, index: Run) -> None:
    path = write(tmp_path / "a.tar", samples(range(3), "png", "png"))
    index(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    data[at + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"sample '000000' of .*a\.tar"):
        streamed(ShardSet.open(tmp_path))
