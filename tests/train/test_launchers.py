"""The examples for launchers, read by Accelerate itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

import train.run
from train.process import processes_here

ROOT = Path(train.run.__file__).resolve().parents[1]
FOLDER = ROOT / "configs" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def launch_arguments(words: list[str]) -> Any:
    """What `accelerate launch` makes of a command line."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return arguments


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_config_and_leaves_precision_to_the_run(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU)
    assert config.mixed_precision == "no"
    arguments = launch_arguments(["--config_file", str(path), "train/run.py", "configs/demo.toml"])
    assert arguments.num_processes == config.num_processes
    assert arguments.multi_gpu == (config.distributed_type == DistributedType.MULTI_GPU)
    assert arguments.training_script_args == ["configs/demo.toml"]


def test_there_is_a_config_for_each_way() -> None:
    assert [path.stem for path in CONFIGS] == ["multi-gpu", "single-gpu", "two-nodes"]
    two = load_config_from_file(str(FOLDER / "two-nodes.yaml"))
    assert (two.num_machines, two.num_processes) == (2, 8)
    second = launch_arguments(["--config_file", str(FOLDER / "two-nodes.yaml"), "--machine_rank", "1", "train/run.py"])
    assert (second.num_machines, second.machine_rank, second.main_process_port) == (2, 1, 29500)


def test_a_config_file_starts_a_real_process(tmp_path: Path) -> None:
    """Up to the first error that is a person's: there is no such shard set."""
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--quiet", "--config_file"]
    ran = subprocess.run(
        [*command, FOLDER / "single-gpu.yaml", train.run.__file__, "--data.shards", "missing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: missing must be a finished shard set")


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Slurm's commands as far as the script uses them: `srun` runs its command once for each machine."""
    tools = {
        "scontrol": 'if [ "$1" = show ]; then printf "first\\nsecond\\n"; else echo "$@"; fi',
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": 'printf "%s\\n" "$@"; echo END',
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}


def test_the_slurm_script_starts_one_launcher_a_machine_with_its_rank(cluster: dict[str, str]) -> None:
    ran = subprocess.run(
        [FOLDER / "slurm.sh", "configs/demo.toml", "--run.name", "two words"],
        env=cluster,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    launches = [words.strip().split("\n") for words in ran.stdout.split("END\n") if words.strip()]
    assert len(launches) == 2
    for rank, words in enumerate(launches):
        assert words[0] == "launch"
        arguments = launch_arguments(words[1:])
        assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (2, 8, rank)
        assert (arguments.main_process_ip, arguments.multi_gpu) == ("first", True)
        assert arguments.training_script == "train/run.py"
        assert arguments.training_script_args == ["configs/demo.toml", "--run.name", "two words"]


def test_the_slurm_script_passes_on_a_signal_waits_for_the_save_and_comes_back(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "srun").write_text(
        "#!/bin/bash\ntrap 'kill $!; echo saved; exit 143' TERM\necho ready\nsleep 60 & wait $!\n"
    )
    script = subprocess.Popen([FOLDER / "slurm.sh"], env=cluster, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert script.stdout is not None
    assert script.stdout.readline() == "ready\n"
    script.send_signal(signal.SIGTERM)
    out, _ = script.communicate(timeout=60)
    assert out.splitlines() == ["saved", "requeue 7"]
    assert script.returncode == 0


def test_the_slurm_script_passes_on_a_failure(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 3\n")
    assert subprocess.run([FOLDER / "slurm.sh"], env=cluster, cwd=ROOT).returncode == 3


def test_cores_are_shared_among_the_processes_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes_here(8) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_here(8) == 4
