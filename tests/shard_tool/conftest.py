"""Small photos, and what the tests of the shard tool ask of a finished set."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shard_tool.cli import main

DATA = Path(__file__).parents[3] / "shared" / "data"

S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

Sample = tuple[str, dict[str, bytes]]
Pixels = Callable[..., Image.Image]


@pytest.fixture(scope="session")
def picture() -> Pixels:
    """A function that paints a smooth colourful RGB image, another one for each `number`."""

    def paint(number: int = 0, size: tuple[int, int] = (200, 240), mode: str = "RGB") -> Image.Image:
        width, height = size
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        waves = [np.sin((3 + number % 5 + channel) * x + (2 + number % 7) * y + number) for channel in range(3)]
        pixels = ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return paint


@pytest.fixture
def photos(tmp_path: Path, picture: Pixels) -> Path:
    """A folder of 60 JPEG photos in two folders."""
    return paint_folder(tmp_path / "raw", picture, 60)


@pytest.fixture(scope="session")
def make_folder(picture: Pixels) -> Callable[..., Path]:
    """A function that fills a folder with photos."""

    def make(folder: Path, count: int, size: tuple[int, int] = (200, 240)) -> Path:
        return paint_folder(folder, picture, count, size)

    return make


def paint_folder(folder: Path, picture: Pixels, count: int, size: tuple[int, int] = (200, 240)) -> Path:
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, size).save(path, quality=90)
    return folder


@pytest.fixture
def make(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs `make-shards`, which must succeed, and returns what it printed."""

    def run(source: object, out: Path, *options: object) -> str:
        sources = source if isinstance(source, list) else [source]
        code = main(["make-shards", *map(str, sources), "--out", str(out), *map(str, options)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs `make-shards`, which must be refused in one line, and returns that line."""

    def run(source: Path, out: Path, *options: object, code: int = 2) -> str:
        assert main(["make-shards", str(source), "--out", str(out), "--quiet", *map(str, options)]) == code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


@pytest.fixture(scope="session")
def hashes() -> Callable[[Path], dict[str, str]]:
    """A function that gives the sha256 of every file below a folder."""

    def read(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return read


@pytest.fixture(scope="session")
def samples() -> Callable[[Path], list[Sample]]:
    """A function that reads all samples of a set, shard after shard, with nothing but tarfile."""

    def read(folder: Path, pattern: str = "*.tar") -> list[Sample]:
        found: list[Sample] = []
        for path in sorted(folder.glob(pattern)):
            with tarfile.open(path) as tar:
                for member in tar:
                    key, _, suffix = member.name.partition(".")
                    content = tar.extractfile(member)
                    assert content is not None
                    if not found or found[-1][0] != key:
                        found.append((key, {}))
                    found[-1][1][suffix] = content.read()
        return found

    return read


@pytest.fixture(scope="session")
def rejections() -> Callable[[Path], dict[str, str]]:
    """A function that reads the reason of each rejected path of a set."""

    def read(folder: Path) -> dict[str, str]:
        lines = map(json.loads, (folder / "rejected.jsonl").read_text(encoding="utf-8").split("\n")[:-1])
        return {line["path"]: line["reason"] for line in lines}

    return read


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """A function that saves an image into bytes."""

    def save(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return save


@pytest.fixture(scope="session")
def celeba() -> Path:
    """10,000 CelebA photos with attributes and the official partition."""
    return _data("celeba")


@pytest.fixture(scope="session")
def odd() -> Path:
    """Files that should be rejected or handled."""
    return _data("odd")


@pytest.fixture(scope="session")
def portraits() -> Path:
    """512x512 portraits."""
    return _data("gan512")


def _data(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"the photos of {folder} are not on this machine")
    return folder


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 300 KB."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "small-disk"
    folder.mkdir()
    if os.geteuid() != 0 or libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=300k") != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        libc.umount2(str(folder).encode(), 2)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 server in a process of its own with a bucket `faces`; it ends with its standard input."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with subprocess.Popen(
        [sys.executable, "-c", S3_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        names = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in names.items():
                patch.setenv(name, value)
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{process.stdout.readline().strip()}")
            from pipeline.remote.transport import filesystem

            filesystem("s3://faces")[0].mkdir("faces")
            yield "s3://faces"
        process.stdin.close()
        process.wait(10)


def content(url: str) -> dict[str, str]:
    """The sha256 of every file below a URL, as `hashes` gives it for a folder."""
    from pipeline.remote.transport import filesystem

    found, root = filesystem(url)
    found.invalidate_cache()
    names = {path: path.strip("/").removeprefix(root.strip("/") + "/") for path in found.find(root)}
    return {name: hashlib.sha256(found.cat_file(path)).hexdigest() for path, name in names.items()}
