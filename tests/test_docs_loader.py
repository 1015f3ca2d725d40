"""Every program, command and figure of docs/loader.md."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from benchmarks import order
from pipeline import StreamingLoader
from tests.helpers import encode, make_image, make_key, make_shard_set

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "loader.md").read_text()
SAMPLES = 150


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def program(*words: str) -> str:
    """The one program that holds all of these words."""
    (found,) = (block for block in blocks("python") if all(word in block for word in words))
    return found


def imports(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set that the page speaks of, and a foreign one."""
    home = tmp_path_factory.mktemp("home")
    for name in ("pipeline", "benchmarks"):
        (home / name).symlink_to(ROOT / name)
    sets = {"train": SAMPLES, "val": 70}
    make_shard_set(home / "shards" / "faces-64", samples=sets, shard_samples=40, size=64, encoding="raw")
    make_shard_set(home / "shards" / "rare-64", samples={"train": 20}, shard_samples=10, size=64, seed=1)
    (home / "webdataset").mkdir()
    with webdataset.TarWriter(str(home / "webdataset" / "0.tar"), encoder=False) as sink:
        for number in range(9):
            sink.write({"__key__": f"{number}", "jpg": encode(make_image("train", number, 16), "jpeg"), "cls": b"1"})
    return home


@pytest.fixture
def inside(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is a fresh one that has the sets of `home`."""
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(folder: Path, *command: str | Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def here(source: str) -> dict[str, Any]:
    """Run a program in this process; returns its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "loader.md", "exec"), names)
    return names


WITH_A_TEST_OF_THEIR_OWN = ("init_process_group", "CHECKPOINT")


@pytest.mark.parametrize(
    "number",
    [n for n, source in enumerate(blocks("python")) if not any(word in source for word in WITH_A_TEST_OF_THEIR_OWN)],
)
def test_every_other_program_runs_and_ends_by_itself(inside: Path, number: int) -> None:
    source = blocks("python")[number]
    optional = imports(source) & {"accelerate", "lightning", "torchdata.stateful_dataloader"}
    for package in optional:
        pytest.importorskip(package.partition(".")[0], reason="an example for those who have it")
    if optional:  # They keep state, and warn.
        shell(inside, sys.executable, "-c", source)
    else:
        here(source)


def test_a_run_that_is_resumed_ends_as_one_that_was_not(inside: Path) -> None:
    source = program("CHECKPOINT", "EPOCHS = 3")
    whole = here(source)
    assert whole["loader"].position >= 3 * SAMPLES
    Path("run.pt").unlink()
    for epochs in (1, 3):
        pieces = here(source.replace("EPOCHS = 3", f"EPOCHS = {epochs}"))
    assert pieces["loader"].position == whole["loader"].position
    for one, other in zip(whole["model"].parameters(), pieces["model"].parameters(), strict=True):
        assert torch.equal(one, other)


RECORDER = """
def recorded(batches):
    with open(f"seen-{rank}", "w") as seen:
        for batch in batches:
            for position, key in zip(batch.positions.tolist(), batch.keys):
                seen.write(f"{position} {key}\\n")
            yield batch

with StreamingLoader("""


def test_two_processes_see_every_sample_once_an_epoch(inside: Path) -> None:
    source = program("init_process_group")
    assert "`ddp.py`" in TEXT
    assert source.count("\nwith StreamingLoader(") == 1
    assert source.count("loader.epoch()") == 1
    source = source.replace("\nwith StreamingLoader(", RECORDER).replace("loader.epoch()", "recorded(loader.epoch())")
    source = source.replace('"w"', '"a"')
    (inside / "ddp.py").write_text(source)
    (command,) = (line for block in blocks("bash") for line in block.splitlines() if "torchrun" in line)
    shell(inside, *shlex.split(command))
    seen = [[line.split() for line in (inside / f"seen-{rank}").read_text().splitlines()] for rank in range(2)]
    assert len(seen[0]) == len(seen[1])
    for epoch in range(2):
        span = range(epoch * SAMPLES, (epoch + 1) * SAMPLES)
        keys = Counter(key for rank in seen for position, key in rank if int(position) in span)
        assert keys == Counter(make_key("train", number) for number in range(SAMPLES))
    state = torch.load("ddp.pt", weights_only=True)["loader"]
    with StreamingLoader("shards/faces-64", batch_size=50, threads=1) as alone:
        alone.load_state_dict(state)
        assert alone.position == len(seen[0]) * 2


@pytest.mark.parametrize(("words", "name"), [(("import lightning",), "Epochs"), (("torchdata",), "Stream")])
def test_the_adapters_keep_to_the_protocol(inside: Path, words: tuple[str, ...], name: str) -> None:
    """What Lightning and torchdata do with them, without either: iterate, save between batches, restore, iterate."""
    (definition,) = (
        node for node in ast.parse(program(*words)).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    adapter = here(f"from torch.utils.data import IterableDataset\nfrom pipeline import StreamingLoader\n"
                   f"{ast.unparse(definition)}")[name]  # fmt: skip
    arguments = (64,) if name == "Epochs" else ()
    with StreamingLoader("shards/faces-64", batch_size=64, threads=1) as loader:
        passes = adapter(loader, *arguments)
        keys, states = [], []
        for _ in range(3):
            for batch in passes:
                keys.append(batch.keys)
                states.append(passes.state_dict())
        if name == "Epochs":
            assert len(passes) == 3
    assert len(keys) == 3 + 2 + 3
    for at in (0, 2, 3, 6):
        with StreamingLoader("shards/faces-64", batch_size=64, threads=1) as loader:
            passes = adapter(loader, *arguments)
            passes.load_state_dict(states[at])
            found = [batch.keys for batch in passes]
        assert found == keys[at + 1 : at + 1 + len(found)]
        assert found


def test_every_command_runs(inside: Path) -> None:
    done = 0
    for line in (line for block in blocks("bash") for line in block.splitlines()):
        words = shlex.split(line)
        if words[0] == "torchrun":  # Above.
            continue
        shell(inside, *words, *(["--seconds", "0.2"] if "pipeline.stats" in words else []))
        done += 1
    assert done == 2
    with StreamingLoader("webdataset", batch_size=9, threads=1, labels=True) as loader:
        assert next(loader).labels is not None


def rows(header: str) -> list[list[str]]:
    (table,) = re.findall(rf"^\| {header} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", TEXT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_figures_of_the_order_are_those_of_the_benchmark() -> None:
    printed = []
    for name, mixed, labels in order.orders(512):
        found = order.mixture(labels, 256)
        printed.append([name, mixed, f"{found.classes:.1f}", f"{found.distance:.3f}", f"{found.drift:.3f}"])
    assert rows("order") == printed
    for lanes, *counts in rows("lanes"):
        assert counts == [f"{order.fetched(512, int(lanes), nodes) / 512:.3f}" for nodes in (1, 2, 4, 8)]
