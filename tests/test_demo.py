"""The main job, smaller: drawn faces to a trained model, with a kill -9 in the middle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from pipeline import ShardSet
from train.evaluate import mean_image_psnr

ROOT = Path(__file__).resolve().parent.parent
LEAST_PSNR_DB = 16.0
LEAST_GAIN_DB = 3.0
"""Over always answering with the mean picture."""


def test_the_demo_learns_faces_and_survives_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "demo" / "run.py", "--count=600", "--size=128", "--"]
    command += ["--train.total-images=12000", "--checkpoint.save-every-minutes=0.05"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

    run = tmp_path / "runs" / "demo"
    named = [line.strip() for line in done.stdout.partition("Open these pictures")[2].splitlines()[1:]]
    assert len(named) == 4
    assert all((tmp_path / picture).stat().st_size > 10_000 for picture in named)

    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    resumed = [entry["position"] for entry in ledger if entry["event"] == "resume"]
    assert resumed
    assert resumed[0] > 0

    torch.set_num_threads(2)
    summary = json.loads((run / "summary.json").read_text())
    reached = summary["scores"]["val"]["psnr_db"]
    floor = mean_image_psnr(ShardSet.open(tmp_path / "shards" / "drawn-64"), "val")
    assert reached > LEAST_PSNR_DB
    assert reached > floor + LEAST_GAIN_DB
