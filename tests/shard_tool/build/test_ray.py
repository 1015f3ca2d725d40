"""`--ray`: the same bytes from a cluster, of which a node dies in the middle of a group."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import UserError
from shard_tool.build.ray_build import build_on_ray
from shard_tool.cli import _with_ray_address
from shard_tool.sources.protocol import Access
from tests.shard_tool.conftest import content

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]

ROOT = Path(__file__).parents[3]
SMALL = ("--size", "16", "--shard-samples", "2")
TIMEOUT = 240

# Two nodes. The second one hangs in its second group, and then dies: `notes` gets a line for each task that begins.
TWO_NODES = """
import os, sys, threading
import ray
from ray.cluster_utils import Cluster
from shard_tool.build import ray_build
from shard_tool.cli import main
from shard_tool.build.journal import Journal

notes, command, bucket = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
node = {"num_cpus": 1, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
second = cluster.add_node(**node)
doomed = second.node_id
begin, record = ray_build.build_group, Journal.record

def build_group(job, group):
    here = ray.get_runtime_context().get_node_id()
    with open(notes, "a") as file:
        file.write(f"{group.number} {'second' if here == doomed else 'first'}\\n")
    if here == doomed and open(notes).read().count("second") == 2:
        threading.Event().wait(120)
    for _ in range(6000):  # The first node leaves some work to the second, however slowly that one starts.
        if here == doomed or open(notes).read().count("second") >= 2:
            break
        threading.Event().wait(0.01)
    return begin(job, group)

def recorded(self, group):
    record(self, group)
    if second in cluster.list_all_nodes() and open(notes).read().count("second") >= 2:
        cluster.remove_node(second, allow_graceful=False)

ray_build.build_group, Journal.record = build_group, recorded
try:
    code = main([*command, "--ray", cluster.address])
    assert second not in cluster.list_all_nodes()
    ray_build.build_group = begin
    command[command.index("--out") + 1] = bucket
    sys.exit(code or main([*command, "--ray", cluster.address]))
finally:
    cluster.shutdown()
"""


def test_two_nodes_of_which_one_dies_give_the_bytes_of_one_thread(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, s3: str
) -> None:
    pytest.importorskip("ray")
    make(photos, tmp_path / "one thread" / "set", *SMALL, "--threads", 1)
    out, notes, bucket = tmp_path / "ray" / "set", tmp_path / "notes", f"{s3}/ray/set"
    command = ["make-shards", str(photos), "--out", str(out), *SMALL, "--staging", str(tmp_path / "staging")]
    script = [sys.executable, "-c", TWO_NODES, str(notes), *command, "--quiet", bucket]
    with subprocess.Popen(
        script, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            errors = process.communicate(timeout=TIMEOUT)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    begun = [line.split() for line in notes.read_text().splitlines()]
    assert {node for _, node in begun} == {"first", "second"}
    hung = [number for number, node in begun if node == "second"][1]
    assert [node for number, node in begun if number == hung] == ["second", "first"], "begun again elsewhere"
    assert hashes(out) == hashes(tmp_path / "one thread" / "set")
    assert content(bucket) == hashes(out)


def test_a_cluster_that_is_not_there_is_refused(photos: Path, tmp_path: Path, refuse: Refuse) -> None:
    pytest.importorskip("ray")
    error = refuse(photos, tmp_path / "set", *SMALL, "--ray", "127.0.0.1:1")
    assert "--ray must be the address of a Ray cluster that runs; got 127.0.0.1:1" in error


def test_without_the_package_the_extra_is_named(
    photos: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'leanstream[ray]'" in refuse(photos, tmp_path / "set", *SMALL, "--ray")


def test_a_source_that_is_read_from_its_start_is_refused() -> None:
    stream: Any = SimpleNamespace(source=SimpleNamespace(name="photos.tar.gz", access=Access.ONE_PASS))
    nothing: Any = None
    with pytest.raises(UserError, match=r"got photos.tar.gz, which is read from its start. Unpack it"):
        build_on_ray(nothing, stream, nothing, address="local", threads=1, report=lambda done, rejected: None)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["raw", "--ray"], ["raw", "--ray", "local"]),
        (["--ray", "raw"], ["--ray", "local", "raw"]),
        (["--ray", "--quiet", "raw"], ["--ray", "local", "--quiet", "raw"]),
        (["--ray", "10.0.0.1:6379", "raw"], ["--ray", "10.0.0.1:6379", "raw"]),
        (["raw", "--ray", "auto"], ["raw", "--ray", "auto"]),
        (["raw", "--ray", "ray://head:10001"], ["raw", "--ray", "ray://head:10001"]),
        (["raw"], ["raw"]),
    ],
)
def test_ray_takes_an_address_or_none(given: list[str], meant: list[str]) -> None:
    assert _with_ray_address(given) == meant
