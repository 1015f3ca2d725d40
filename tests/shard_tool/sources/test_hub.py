"""Datasets on the Hub, played by files on this machine: resolution, ranges, splits, the recorded commit."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from pipeline.errors import UserError
from pipeline.format import ShardSet
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Wanted
from tests.shard_tool.sources.packs import contents
from tests.shard_tool.sources.tables import dataset_of, write_parquet

datasets = pytest.importorskip("datasets")
hub = pytest.importorskip("huggingface_hub")

Make = Callable[..., str]
Refuse = Callable[..., str]

SMALL = ("--size", 16, "--shard-samples", 5)
COMMITS = {None: "c0ffee", "main": "c0ffee", "old": "0ddba11", "refs/convert/parquet": "beefed"}


class Hub:
    """What of the Hub is asked: commits, file names, configurations, and ranges of files."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.data_files: Mapping[str, Mapping[str, list[str]]] = {}
        root.mkdir()

        class Files(DirFileSystem):  # type: ignore[misc]
            protocol = "hf"
            cachable = False

            def __init__(self, *_: Any, **__: Any) -> None:
                super().__init__(path=str(root), fs=LocalFileSystem())

        monkeypatch.setitem(_registry, "hf", Files)
        monkeypatch.setattr(hub.HfApi, "dataset_info", self._info)
        monkeypatch.setattr(hub.HfApi, "list_repo_files", self._list)
        monkeypatch.setattr(datasets, "load_dataset_builder", self._builder)

    def folder(self, repo: str, commit: str) -> Path:
        folder = self.root / "datasets" / f"{repo}@{commit}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _info(self, repo: str, revision: str | None = None, **_: Any) -> Any:
        return SimpleNamespace(sha=COMMITS.get(revision, revision))

    def _list(self, repo: str, *, repo_type: str, revision: str) -> list[str]:
        assert repo_type == "dataset"
        folder = self.folder(repo, revision)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def _builder(self, repo: str, config: str | None, revision: str) -> Any:
        if config not in self.data_files and (config or len(self.data_files) > 1):
            raise ValueError(f"Config name is missing. Please pick one among {list(self.data_files)}")
        chosen = self.data_files[config] if config else next(iter(self.data_files.values()))
        urls = {split: [f"hf://datasets/{repo}@{revision}/{name}" for name in names] for split, names in chosen.items()}
        return SimpleNamespace(config=SimpleNamespace(data_files=urls))


@pytest.fixture
def hub_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


def fill(hub_at: Hub, files: list[Path], commit: str = "c0ffee") -> None:
    data = hub_at.folder("me/faces", commit) / "data"
    data.mkdir()
    label = datasets.ClassLabel(names=["ape", "bee"])
    for name, part in (("train-0", files[:30]), ("train-1", files[30:45]), ("test-0", files[45:])):
        write_parquet(dataset_of(part, label=([n % 2 for n in range(len(part))], label)), data / f"{name}.parquet")
    hub_at.data_files = {
        "all": {"train": ["data/train-0.parquet", "data/train-1.parquet"], "test": ["data/test-0.parquet"]},
        "less": {"train": ["data/train-0.parquet"]},
    }


def test_a_dataset_is_read_at_its_commit_which_is_recorded(
    hub_at: Hub, files: list[Path], tmp_path: Path, make: Make, refuse: Refuse
) -> None:
    fill(hub_at, files)
    make("hf://datasets/me/faces", tmp_path / "set", *SMALL, "--config", "all")
    opened = ShardSet.open(tmp_path / "set")
    assert {split: found.total for split, found in opened.splits.items()} == {"train": 45, "test": 15}
    source = opened.parts[0]["source"]
    assert (source["dataset"], source["commit"], source["config"]) == ("me/faces", "c0ffee", "all")
    # The same files at another commit are another source.
    shutil.copytree(hub_at.folder("me/faces", "c0ffee"), hub_at.folder("me/faces", "0ddba11"), dirs_exist_ok=True)
    error = refuse("hf://datasets/me/faces@old", tmp_path / "set", *SMALL, "--config", "all")
    assert "commit 0ddba11 (was built with c0ffee)" in error


def test_configuration_split_and_label_are_chosen(hub_at: Hub, files: list[Path]) -> None:
    fill(hub_at, files)
    less = open_sources(["hf://datasets/me/faces"], Wanted(config="less", label="label"))
    assert list(contents(less).values()) == [path.read_bytes() for path in files[:30]]
    assert less.known.classes == ("ape", "bee")
    test = open_sources(["hf://datasets/me/faces"], Wanted(config="all", split="test"))
    assert len(test.listing) == 15
    assert test.known.split_of is None
    with pytest.raises(UserError, match=r"--split must be one of the dataset's, train, test; got 'val'"):
        open_sources(["hf://datasets/me/faces"], Wanted(config="all", split="val"))
    with pytest.raises(UserError, match=r"--config must choose one of the dataset's; got .*\['all', 'less'\]"):
        open_sources(["hf://datasets/me/faces"])


def test_a_dataset_that_is_no_parquet_is_read_from_what_the_hub_has_converted(hub_at: Hub, files: list[Path]) -> None:
    (hub_at.folder("me/faces", "c0ffee") / "photos.zip").touch()
    converted = hub_at.folder("me/faces", "beefed")
    for config in ("default", "other"):
        for split, part in (("train", files[:50]), ("validation", files[50:])):
            (converted / config / split).mkdir(parents=True)
            write_parquet(dataset_of(part), converted / config / split / "0000.parquet")
    source = open_sources(["hf://datasets/me/faces"])
    assert source.origin == {"dataset": "me/faces", "commit": "beefed", "image_column": "image"}
    assert len(source.listing) == 60
    assert source.known.split_of is not None
    assert source.known.split_of.tolist() == [0] * 50 + [1] * 10
    with pytest.raises(UserError, match=r"--config must be one of the dataset's, default, other; got 'none'"):
        open_sources(["hf://datasets/me/faces"], Wanted(config="none"))


def test_a_dataset_without_parquet_says_so(hub_at: Hub) -> None:
    (hub_at.folder("me/faces", "c0ffee") / "photos.zip").touch()
    with pytest.raises(UserError, match="must have parquet files; got none"):
        open_sources(["hf://datasets/me/faces"])


def test_a_dataset_that_may_not_be_read_is_one_line(hub_at: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        request = httpx2.Request("GET", "https://hub")
        answer = httpx2.Response(404, request=request)
        raise hub.errors.RepositoryNotFoundError("404 Client Error.\nRepository Not Found", response=answer)

    monkeypatch.setattr(hub.HfApi, "dataset_info", refused)
    with pytest.raises(UserError, match=r"hf://datasets/me/faces must be "):
        open_sources(["hf://datasets/me/faces"])
