"""Sources behind URLs: `https://` with ranges, and `s3://` of a server process."""

import gzip
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import TransportError, UserError
from pipeline.remote import transport as remote
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Access, Wanted
from tests.shard_tool.sources.packs import contents, files_of, tar_of, zip_of
from tests.shard_tool.sources.servers import FileServer, s3_server
from tests.shard_tool.sources.tables import dataset_of, write_parquet

pytest.importorskip("aiohttp")
s3fs = pytest.importorskip("s3fs")

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Upload = Callable[[Path], str]

SMALL = ("--size", 16, "--shard-samples", 5)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are short here."""
    short = remote.Patience(attempts=4, deadline_s=30, silence_s=5, first_wait_s=0.001, longest_wait_s=0.01)
    for function in (remote.retrying, remote.filesystem, remote.read_chunks):
        defaults = tuple(short if isinstance(one, remote.Patience) else one for one in function.__defaults__ or ())
        monkeypatch.setattr(function, "__defaults__", defaults or None)
        if function.__kwdefaults__:
            kept = {k: short if isinstance(v, remote.Patience) else v for k, v in function.__kwdefaults__.items()}
            monkeypatch.setattr(function, "__kwdefaults__", kept)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "www").mkdir()
    with FileServer(tmp_path / "www") as server:
        yield server


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    pytest.importorskip("moto.server")
    with s3_server() as address:
        yield address


@pytest.fixture
def upload(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Upload:
    """A function that puts a folder into a new bucket, and returns its URL."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()

    def put(folder: Path) -> str:
        bucket = f"b{uuid.uuid4().hex}"
        system: Any = fsspec.filesystem("s3")
        system.mkdir(bucket)
        for name, data in files_of(folder):
            system.pipe_file(f"{bucket}/{folder.name}/{name}", data)
        return f"s3://{bucket}/{folder.name}"

    return put


def test_a_zip_is_read_by_ranges_and_gives_the_bytes_of_its_folder(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, server: FileServer
) -> None:
    make(photos, tmp_path / "folder" / "set", *SMALL, "--limit", 20)
    size = zip_of(photos, tmp_path / "www" / "raw.zip").stat().st_size
    make(f"{server.url}/raw.zip", tmp_path / "url" / "set", *SMALL, "--limit", 20)
    assert hashes(tmp_path / "folder" / "set") == hashes(tmp_path / "url" / "set")
    assert server.sent < size


def test_a_server_that_fails_for_a_moment_is_asked_again(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, server: FileServer
) -> None:
    zip_of(photos, tmp_path / "www" / "raw.zip")
    make(f"{server.url}/raw.zip", tmp_path / "one" / "set", *SMALL)
    server.faults += [503, 500, 429]
    make(f"{server.url}/raw.zip", tmp_path / "two" / "set", *SMALL, "--threads", 1)
    assert not server.faults
    assert hashes(tmp_path / "one" / "set") == hashes(tmp_path / "two" / "set")


def test_a_server_that_goes_away_is_a_failure_and_the_same_command_goes_on(
    photos: Path,
    tmp_path: Path,
    make: Make,
    refuse: Callable[..., str],
    hashes: Hashes,
    server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shard_tool.sources.protocol.CHUNK_FILES", 5)
    zip_of(photos, tmp_path / "www" / "raw.zip")
    make(f"{server.url}/raw.zip", tmp_path / "one" / "set", *SMALL)
    source = open_sources([f"{server.url}/raw.zip"])
    server.faults += [503] * 4
    with pytest.raises(TransportError, match=r"raw\.zip must be available within 4 attempts"):
        source.read(0)
    tables = sum("raw.zip" not in request for request in server.requests)
    server.requests.clear()
    server.fails_after = tables + 35  # Requests: in the second of the groups.
    error = refuse(f"{server.url}/raw.zip", tmp_path / "two" / "set", *SMALL, "--threads", 1, code=1)
    assert "could not be read this time" in error
    assert "must be available within 4 attempts" in error
    assert not (tmp_path / "two" / "set" / "rejected.jsonl").exists()
    server.fails_after = None
    server.requests.clear()
    make(f"{server.url}/raw.zip", tmp_path / "two" / "set", *SMALL)
    assert sum("raw.zip" in request for request in server.requests) < 60, "the first group was kept"
    assert hashes(tmp_path / "one" / "set") == hashes(tmp_path / "two" / "set")


def test_a_server_without_ranges_is_one_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    zip_of(photos, tmp_path / "www" / "raw.zip")
    with (
        FileServer(tmp_path / "www", ranges=False) as server,
        pytest.raises(UserError, match=r"on a server that gives ranges.*Download the file"),
    ):
        open_sources([f"{server.url}/raw.zip"])


def test_an_address_with_nothing_behind_it_is_one_line(server: FileServer) -> None:
    with pytest.raises(UserError, match=r"the source must be there; got nothing at http.*nothing\.zip"):
        open_sources([f"{server.url}/nothing.zip"])


@pytest.mark.parametrize("name", ["raw.tar", "raw.tar.gz"])
def test_a_tar_is_streamed(photos: Path, tmp_path: Path, server: FileServer, name: str) -> None:
    tar_of(photos, tmp_path / "www" / name, "gz" if name.endswith("gz") else "")
    server.faults += [503]
    source = open_sources([f"{server.url}/{name}"])
    assert source.access is Access.BY_CHUNK
    whole = dict(files_of(photos))
    assert {
        path.decode(): data for path, data in zip(source.listing, source.read_through(range(60)), strict=True)
    } == whole


def test_parquet_is_read_by_ranges(photos: Path, tmp_path: Path, server: FileServer) -> None:
    files = sorted(photos.rglob("*.jpg")) * 3
    path = write_parquet(dataset_of(files), tmp_path / "www" / "a.parquet")
    before = server.sent
    source = open_sources([f"{server.url}/a.parquet"])
    assert server.sent - before < path.stat().st_size / 2
    server.faults += [503]
    assert [*source.read_through(range(180))] == [path.read_bytes() for path in files]


def test_a_bucket_gives_the_bytes_of_the_folder(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, upload: Upload
) -> None:
    lines = ["image_id,Male", *(f"{number:05d}.jpg,{-1 if number % 3 else 1}" for number in range(60))]
    (photos / "list_attr_celeba.csv").write_text("\n".join(lines))
    (photos / "notes.md").touch()
    make(photos, tmp_path / "folder" / "set", *SMALL)
    printed = make(f"{upload(photos)}/", tmp_path / "bucket" / "set", *SMALL, "--threads", 3)
    assert hashes(tmp_path / "folder" / "set") == hashes(tmp_path / "bucket" / "set")
    assert "not an image" in printed


def test_archives_in_a_bucket_are_sources_and_globs_choose_among_them(
    photos: Path, tmp_path: Path, upload: Upload
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    zip_of(photos / "a", packed / "a.zip")
    zip_of(photos / "b", packed / "b.zip")
    (packed / "c.tar.gz").write_bytes(gzip.compress(tar_of([("c.jpg", b"c")], tmp_path / "c.tar").read_bytes()))
    url = upload(packed)
    both = {**dict(files_of(photos / "a")), **dict(files_of(photos / "b"))}
    assert contents(open_sources([f"{url}/*.zip"])) == both
    assert contents(open_sources([url])) == {**both, "c.jpg": b"c"}


def test_a_bucket_is_listed_page_by_page(photos: Path, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(photos)
    pages: list[int] = []
    call = s3fs.S3FileSystem.call_s3

    def small_pages(self: Any, method: str, *args: Any, **options: Any) -> Any:
        answer = call(self, method, *args, **options, MaxKeys=7)
        pages.append(len(answer["Contents"]))
        return answer

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", small_pages)
    assert len(open_sources([url]).listing) == 60
    assert len(pages) == 9


def test_an_empty_bucket_is_one_line(tmp_path: Path, upload: Upload) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.md").touch()
    with pytest.raises(UserError, match=r"must hold photos .* got 1 \.md"):
        open_sources([upload(tmp_path / "raw")])


def test_a_table_whose_server_goes_away_is_a_failure_of_its_group(
    photos: Path, tmp_path: Path, make: Make, refuse: Callable[..., str], hashes: Hashes, server: FileServer
) -> None:
    files = sorted(photos.rglob("*.jpg"))
    write_parquet(dataset_of(files), tmp_path / "www" / "a.parquet", row_group=5)
    make(f"{server.url}/a.parquet", tmp_path / "one" / "set", *SMALL)
    server.requests.clear()
    open_sources([f"{server.url}/a.parquet"])
    server.fails_after = 2 * len(server.requests) + 6  # Soon after the listing.
    error = refuse(f"{server.url}/a.parquet", tmp_path / "two" / "set", *SMALL, code=1)
    assert "could not be read this time" in error
    assert "within 4 attempts" in error
    server.fails_after = None
    make(f"{server.url}/a.parquet", tmp_path / "two" / "set", *SMALL)
    assert hashes(tmp_path / "one" / "set") == hashes(tmp_path / "two" / "set")


def test_every_file_behind_a_url_is_a_photo_or_counted(photos: Path, upload: Upload) -> None:
    more = (
        "__MACOSX/a.jpg",
        ".hidden/b.jpg",
        "notes.md",
        "t.csv",
        "out/c.jpg",
        "shards/x/shardset.json",
        "shards/x/t.tar",
    )
    for name in more:
        (photos / name).parent.mkdir(exist_ok=True, parents=True)
        (photos / name).touch()
    source = open_sources([upload(photos)], Wanted(exclude=("out/",)))
    assert len(source.listing) == 60
    assert source.ignored == {
        "system folder": 1, "hidden": 1, "not an image": 2, "table": 1, "excluded": 1, "shard set": 1,
    }  # fmt: skip


def test_photos_and_archives_in_a_bucket_are_both(photos: Path, tmp_path: Path, upload: Upload) -> None:
    zip_of(photos / "a", photos / "more.zip")
    assert len(open_sources([upload(photos)]).listing) == 90


def test_a_photo_of_another_size_than_listed_is_an_error(photos: Path, upload: Upload) -> None:
    url = upload(photos)
    source = open_sources([url])
    fsspec.filesystem("s3").pipe_file(f"{url.removeprefix('s3://')}/{source.listing[0].decode()}", b"cut")
    with pytest.raises(TransportError, match=r"3 bytes, [\d,]+ when it was listed"):
        source.read(0)


def test_a_table_beside_a_zip_is_found(photos: Path, tmp_path: Path, server: FileServer) -> None:
    zip_of(photos, tmp_path / "www" / "raw.zip")
    (tmp_path / "www" / "t.csv").write_text("of the photos")
    source = open_sources([f"{server.url}/raw.zip"])
    assert source.side_files("other.csv") == []
    (found,) = source.side_files("t.csv")
    with found.open() as file:
        assert (found.inside, file.read()) == (False, b"of the photos")
