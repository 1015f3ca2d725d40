"""Whatever the image of a sample claims to be, it is opened as one of three formats, or refused."""

import ast
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from pipeline.errors import ShardError
from pipeline.format import ShardSet, Split, npy_bytes
from pipeline.shards.decode import Decoder
from pipeline.shards.picture import PICTURE_ERRORS, decode_picture, npy_header, open_picture, read_header
from pipeline.shards.shard import ShardFile
from pipeline.tar import ShardWriter
from shard_tool.cli import main
from tests.helpers import encode, make_image

ROOT = Path(__file__).parents[2]
SIZE = 16
GOOD = encode(make_image("train", 0, SIZE), "png")


def saved(format_name: str, mode: str = "RGB", size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format_name)
    return buffer.getvalue()


def eps(mark: Path) -> bytes:
    """An EPS whose program writes the file `mark`."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
        b"(" + bytes(mark) + b") (w) file dup (owned) writestring closefile\nshowpage\n%%EOF\n"
    )


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so, and which has no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_set(folder: Path, image: bytes) -> ShardSet:
    """A set of PNG files of which the second, `bad`, is `image`, with right crc32s throughout."""
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, "train-000000")
    for key, data in (("good", GOOD), ("bad", image)):
        writer.add(key, data, "png")
    shard = writer.close()
    assert shard is not None
    ShardSet(folder, "changed", SIZE, 3, "png", {"train": Split.of([vars(shard)])}).save()
    return ShardSet.open(folder)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was started as a program, instead of starting it; Pillow believes that there is a Ghostscript."""
    started: list[object] = []

    def start(*args: object, **options: object) -> None:
        started.append(args)
        raise OSError("no program may be started")

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def test_the_fault_is_real(tmp_path: Path, programs: list[object]) -> None:
    with pytest.raises(OSError, match="no program"), Image.open(io.BytesIO(eps(tmp_path / "mark"))) as image:
        image.load()
    assert programs


def test_training_runs_no_program_for_an_eps_in_a_set(tmp_path: Path, programs: list[object]) -> None:
    shards = write_set(tmp_path / "set", eps(tmp_path / "mark"))
    file = ShardFile(shards, next(iter(shards.split("train"))))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ShardError, match=r"sample 'bad' of .* must decode; got 'bytes that are no JPEG, PNG or WebP"):
        Decoder().fill([file, file], [0, 1], np.empty((2, SIZE, SIZE, 3), np.uint8))
    assert sorted(tmp_path.rglob("*")) == before
    assert not programs


def test_verify_runs_no_program_for_an_eps_in_a_set(
    tmp_path: Path, programs: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_set(tmp_path / "set", eps(tmp_path / "mark"))
    assert main(["verify", str(shards.folder), "--quiet"]) == 1
    assert "does not decode: bytes that are no JPEG, PNG or WebP file" in capsys.readouterr().err
    assert not programs
    assert not (tmp_path / "mark").exists()


def test_index_runs_no_program_for_an_eps_in_a_tar(
    tmp_path: Path, programs: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set", eps(tmp_path / "mark")).folder
    for name in ("shardset.json", "train-000000.index"):
        (folder / name).unlink()
    assert main(["index", str(folder), "--quiet"]) == 2
    assert "sample 'bad'" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["train-000000.tar"]
    assert not programs
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("other", ["GIF", "TIFF", "BMP", "PPM", "PDF", "ICO", "EPS"])
def test_other_formats_are_refused(other: str) -> None:
    data = saved(other)
    with pytest.raises(ValueError, match="bytes that are no JPEG, PNG or WebP file"):
        decode_picture(data, np.empty((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"bytes that are no JPEG, PNG, WebP or \.npy file"):
        read_header(data)


@pytest.mark.parametrize("formats", [("EPS",), ("PNG", "WMF"), ("PDF",)])
def test_formats_that_start_programs_cannot_be_asked_for(formats: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="formats must be some of"):
        open_picture(GOOD, formats)


@pytest.mark.parametrize("encoding", ["jpeg", "png", "webp"])
def test_a_picture_is_decoded_into_memory_of_its_size(encoding: str) -> None:
    data, out = encode(make_image("train", 0, SIZE), encoding), np.zeros((SIZE, SIZE, 3), np.uint8)
    assert decode_picture(memoryview(data), out) == (SIZE, SIZE, 3)
    np.testing.assert_allclose(out.astype(int), make_image("train", 0, SIZE).astype(int), atol=12)
    assert read_header(data) == (encoding, SIZE, SIZE)


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP"])
def test_a_picture_of_another_size_is_not_decoded(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simplejpeg.decode_jpeg", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    out = np.full((SIZE, SIZE, 3), 7, np.uint8)
    assert decode_picture(saved(encoding, size=(SIZE * 2, SIZE)), out)[:2] == (SIZE, SIZE * 2)
    assert (out == 7).all()


def test_the_channels_are_those_of_the_file() -> None:
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    assert decode_picture(saved("JPEG", "L"), out)[2] == 1
    assert decode_picture(saved("PNG", "L"), out)[2] == 1
    assert decode_picture(saved("PNG", "RGBA"), out)[2] == 4


def test_absurd_dimensions_are_refused_before_pixels_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    shards = write_set(tmp_path / "set", png_of(9_000, 9_000))
    file = ShardFile(shards, next(iter(shards.split("train"))))
    with pytest.raises(ShardError, match=r"sample 'bad' of .* must be 16x16 pixels; got 9000x9000"):
        Decoder().fill([file], [1], np.empty((1, SIZE, SIZE, 3), np.uint8))
    with pytest.raises(Image.DecompressionBombError, match="2000000000x2000000000"):
        open_picture(png_of(2_000_000_000, 2_000_000_000))


def npy(header: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(48)


@pytest.mark.parametrize(
    "data",
    [
        npy("-" * 9_000 + "1"),
        npy("{'descr': (), 'fortran_order': False, 'shape': (4, 4, 3), }"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -4, 3), }"),
        npy("{'descr': '|u1', 'fortran_order': True, 'shape': (4, 4, 3), }"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 12), }"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 99999999999, 3), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (4, 4, 3), }"),
        b"\x93NUMPY\2\0" + npy("{}")[8:],
        b"\x93NUMPY",
        b"",
        npy_bytes(np.zeros((4, 4, 3), np.uint8))[:-1],
    ],
)
def test_arrays_that_are_no_images_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"npy|an array of shape"):
        npy_header(data)


def test_an_array_tells_its_shape_and_where_its_pixels_begin() -> None:
    data = npy_bytes(np.zeros((4, 5, 3), np.uint8))
    header, shape = npy_header(memoryview(data))
    assert (data[: len(header)], len(data) - len(header), shape) == (header, 60, (4, 5, 3))
    assert read_header(data) == ("raw", 4, 5)


@given(st.sampled_from(["jpeg", "png", "webp"]), st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255))))
def test_a_damaged_picture_is_one_of_the_known_errors(encoding: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encode(make_image("train", 0, SIZE), encoding))
    for place, value in changes:
        data[place % len(data)] = value
    for attempt in (
        lambda: decode_picture(bytes(data), np.empty((SIZE, SIZE, 3), np.uint8)),
        lambda: read_header(bytes(data)),
    ):
        try:
            attempt()
        except PICTURE_ERRORS:
            pass


def test_pillow_opens_files_at_one_place_and_knows_the_formats_there() -> None:
    found = [
        (path.relative_to(ROOT).as_posix(), {keyword.arg for keyword in node.keywords})
        for package in ("pipeline", "shard_tool", "train", "explore")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
    ]
    assert found == [("pipeline/shards/picture.py", {"formats"})]


def test_nothing_else_imports_the_function_that_opens() -> None:
    for path in (
        path for package in ("pipeline", "shard_tool", "train", "explore") for path in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "PIL.Image"), path


def test_opening_pictures_loads_no_torch() -> None:
    program = "import sys, pipeline.shards.picture; assert not {'torch', 'PIL.EpsImagePlugin'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
