"""A run on a set behind a URL is the run on its folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from explore.cli import main as explore
from pipeline.format import ShardSet
from tests.faults import FaultyServer
from train.audit import main as audit
from train.config import load_config
from train.run import main
from train.runfolder import RunFolder


@pytest.fixture
def server(faces: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    with FaultyServer(faces.folder) as running:
        yield running


def weights(folder: Path) -> str:
    return str(json.loads(RunFolder(folder).summary_file.read_bytes())["weights_sha256"])


def test_a_run_on_a_url_ends_with_the_weights_of_a_run_on_the_folder(
    tiny_toml: Path, tmp_path: Path, faces: ShardSet, server: FaultyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.plan["train-000001.tar"] = ["busy", "truncated", "reset midway"]
    near, far, through = (str(tmp_path / name) for name in ("near", "far", "through"))
    cached = ["--data.cache", str(tmp_path / "cache"), "--data.cache-bytes", "2MiB"]
    assert main([str(tiny_toml), "--run.dir", near, "--data.shards", str(faces.folder)]) == 0
    capsys.readouterr()
    assert main([str(tiny_toml), "--run.dir", far, "--data.shards", server.url]) == 0
    said = capsys.readouterr().out
    assert f"40 training images from {server.url}" in said
    assert f"shards are read through {tmp_path}/cache-home/leanstream, up to" in said
    assert main([str(tiny_toml), "--run.dir", through, "--data.shards", str(faces.folder), *cached]) == 0
    assert f"shards are read through {tmp_path}/cache, up to 2.0 MiB of copies" in capsys.readouterr().out
    assert weights(Path(near)) == weights(Path(far)) == weights(Path(through))

    assert audit([far]) == 0
    assert load_config(Path(far) / "config.toml").data.shards == (server.url,)
    assert explore(["reconstruct", "--run", far, "--count", "3"]) == 0
    assert explore(["reconstruct", "--model", f"{near}/final", "--shards", server.url, "--count", "3"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.cache-bytes", "9KB"], "cache_bytes must hold the"),
        (["--data.cache", "{tmp}/file/cache"], "as a cache must succeed"),
    ],
)
def test_a_cache_that_cannot_work_is_one_line(
    tiny_toml: Path,
    tmp_path: Path,
    server: FaultyServer,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    (tmp_path / "file").write_bytes(b"")
    filled = [word.format(tmp=tmp_path) for word in more]
    assert main([str(tiny_toml), "--run.dir", str(tmp_path / "run"), "--data.shards", server.url, *filled]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_url_without_a_set_is_one_line(
    tiny_toml: Path, tmp_path: Path, server: FaultyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url}/nothing"
    assert main([str(tiny_toml), "--run.dir", str(tmp_path / "run"), "--data.shards", url]) == 2
    assert capsys.readouterr().err.startswith(f"error: {url} must be a finished shard set; got no shardset.json there.")
