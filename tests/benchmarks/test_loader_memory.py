"""The memory benchmark: its distinct files, and a whole small run."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.loader_memory import make_sets, with_comment
from benchmarks.loaders.samples import stored_bytes, tars
from pipeline.format import ShardSet

ROOT = Path(__file__).resolve().parents[2]


def decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)


def test_a_comment_makes_another_file_of_the_same_picture(photos):
    data = (photos / "000.jpg").read_bytes()
    files = {with_comment(data, number) for number in range(300)}
    assert len(files) == 300
    assert all((decode(file) == decode(data)).all() for file in list(files)[:3])


def test_sets_hold_as_many_distinct_files_as_asked_for(photos, tmp_path):
    sets = make_sets(photos, tmp_path, 32, [30, 50])
    for count, folder in sets.items():
        assert ShardSet.open(folder).split("train").total == count
        assert len({data for tar in tars(folder) for data in stored_bytes(tar)}) == count
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert make_sets(None, tmp_path, 32, [30, 50]) == sets
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")} == written


def test_a_whole_run_compares_streaming_with_the_import_alone(photos, tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / "loader_memory.py", f"--photos={photos}", "--counts=64"]
    command += ["--long-passes=0", "--repeats=1", "--size=32", "--batch=32", "--delete"]
    command += [f"--work={tmp_path / 'work'}", f"--json={result}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {(entry["samples"], entry["passes"]): entry for entry in json.loads(result.read_text())["figures"]}
    assert set(figures) == {(0, 0), (64, 1)}
    alone, streaming = (figures[job]["peaks_mib"][0] for job in ((0, 0), (64, 1)))
    assert streaming["pss"] > 20
    assert streaming["rss"] > alone["rss"]
    assert not list((tmp_path / "work").glob("memory-*"))
