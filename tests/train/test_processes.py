"""One process and two: `torchrun` and plain Python give the same training."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import train.run
from pipeline import Dataset
from pipeline.errors import ConfigError
from pipeline.format import ShardSet
from tests.helpers import make_shard_set
from tests.train.tiny import tiny_config
from train.checkpoint import generations
from train.run import main, resolve
from train.runfolder import RunFolder

UPDATES = 50
BATCH = 16


def torchrun(processes: int) -> list[str]:
    return [str(Path(sys.executable).with_name("torchrun")), f"--nproc-per-node={processes}", train.run.__file__]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shard_set(tmp_path_factory.mktemp("sets") / "faces", samples={"train": 320, "val": 8}, size=64)


def saved_state(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads((generations(folder.checkpoints)[0] / "state.json").read_bytes()))


@pytest.mark.parametrize("objective", ["optimal_sigma", "mse"])
def test_two_processes_train_as_one(tmp_path: Path, shards: ShardSet, objective: str) -> None:
    """With the default `conv` model; the second half of the two-process run is a resume."""
    toml = tmp_path / "two.toml"
    toml.write_text(
        f'[loss]\nobjective = "{objective}"\n[train]\nbatch_size = {BATCH}\ntotal_images = {UPDATES * BATCH}\n'
        # In float32: bf16 would round each micro-batch's gradients to three digits.
        'threads = 1\nlog_every_updates = 1\nprior_images = 16\nmixed_precision = "no"\n'
    )
    arguments = [str(toml), "--data.shards", str(shards.folder), "--run.dir"]
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert main([*arguments, str(one.path)]) == 0
    ran = subprocess.run([*torchrun(2), *arguments, str(two.path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "2 processes x 1 micro-batches of 8" in ran.stdout
    assert ran.stdout.count("done: ") == 1
    for rank in range(2):
        assert f"process {rank} of 2 ends" in (two.logs / f"rank-{rank}.log").read_text()
    summary = json.loads(two.summary_file.read_bytes())
    peaks = [each["pss"] for each in summary["peaks_of_processes"]]
    assert summary["peak_pss_bytes"] == sum(peaks) > max(peaks) > 10**7
    expected, found = ([r for r in folder.read_metrics() if "loss" in r] for folder in (one, two))
    assert len(found) == UPDATES
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["position"] == theirs["position"]
        for name in ("loss", "mse", "kl_nats", "sigma"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (name, ours["position"])
    assert saved_state(two)["audit"] == saved_state(one)["audit"]
    assert len(saved_state(one)["audit"]) == 3


def test_a_run_of_one_process_goes_on_with_four_with_two_and_back(
    tiny_toml: Path, tmp_path: Path, faces: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    arguments = [str(tiny_toml), "--data.shards", str(faces.folder), "--optim.schedule", "constant", "--run.dir"]
    assert main([*arguments, str(whole.path)]) == 0
    assert main([*arguments, str(folder.path), "--train.total-images", "32"]) == 0
    for processes, images in ((4, 48), (2, 64)):
        again = [*torchrun(processes), *arguments, str(folder.path), "--train.total-images", str(images)]
        ran = subprocess.run(again, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert f"{processes} processes x " in ran.stdout
    assert main([*arguments, str(folder.path)]) == 0
    expected, found = ([r["loss"] for r in each.read_metrics() if "loss" in r] for each in (whole, folder))
    assert found == pytest.approx(expected, rel=1e-4)
    assert saved_state(folder)["audit"] == saved_state(whole)["audit"]


def test_a_batch_that_the_processes_cannot_share_is_an_error(faces: ShardSet) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of 3 processes; got 16"):
        resolve(tiny_config(), Dataset.open(faces), 3)


def test_a_finished_run_ends_on_machines_that_share_no_disk(tiny_toml: Path, tmp_path: Path, faces: ShardSet) -> None:
    """The second machine sees no files of the run, and must not wait for the first one alone."""
    arguments = [str(tiny_toml), "--data.shards", str(faces.folder), "--run.dir"]
    assert main([*arguments, str(tmp_path / "first")]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    machines = [
        subprocess.Popen(
            [sys.executable, train.run.__file__, *arguments, str(tmp_path / name)],
            env={**os.environ, **together, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(("first", "second"))
    ]
    try:
        said = [machine.communicate(timeout=120) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "is finished at image 96" in said[0][0]
    assert not said[1][0]
    assert not (tmp_path / "second" / "checkpoints").exists()
