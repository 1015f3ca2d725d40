"""The main job on a small scale: drawn faces -> shards -> a trained VAE that survives kill -9 -> pictures.

    make demo        (about five minutes on two cores; the same as: python demo/run.py)

Everything goes through the commands that a person would type; they are printed before they run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
LAUNCH_DEFAULTS = ("--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
"""What accelerate would take anyway, and report at length; the trainer chooses the precision itself."""


def main() -> None:
    """Run the demo in the current folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="faces to draw")
    parser.add_argument("--size", type=int, default=600, help="their size in pixels")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="where the results go")
    parser.add_argument("overrides", nargs="*", help="for train/run.py, after --, e.g. -- --train.epochs 3")
    options = parser.parse_args()
    began = time.monotonic()
    raw, shards = Path("raw/drawn"), Path("shards/drawn-64")
    os.environ["PYTHONPATH"] = str(ROOT)

    say("1/4  Drawing faces: your own photos would lie here")
    if (raw / "list_attr_celeba.csv").exists():
        print(f"{raw} is there already")
    else:
        run(str(BIN / "shard_tool"), "draw-faces", str(raw), f"--count={options.count}", f"--size={options.size}")

    say("2/4  Making shards of 64x64 pixels")
    run(str(BIN / "shard_tool"), "make-shards", str(raw), "--size=64", f"--out={shards}")

    say("3/4  Training, and killing the trainer with SIGKILL in the middle")
    train = [str(BIN / "accelerate"), "launch", "--quiet", *LAUNCH_DEFAULTS]
    train += [str(ROOT / "train/run.py"), str(ROOT / "configs/demo.toml")]
    train += [f"--data.shards={shards}", f"--run.dir={options.run_dir}", *options.overrides]
    kill_in_the_middle([*train, "--run.fresh"], options.run_dir)

    say("4/4  The same command again: it goes on")
    run(*train)
    run(str(BIN / "explore"), "reconstruct", f"--run={options.run_dir}")
    run(str(BIN / "explore"), "sample", f"--run={options.run_dir}")

    grids = sorted((options.run_dir / "grids").glob("*.png"))
    say(f"Done in {time.monotonic() - began:.0f} s. Open these pictures:")
    for picture in (grids[0], grids[-1], *sorted((options.run_dir / "explore").glob("*.png"))):
        print(f"  {picture}")


def kill_in_the_middle(command: list[str], run_dir: Path) -> None:
    """Start the training and send SIGKILL to its whole process group half-way, after its first save."""
    print("$", " ".join(command), flush=True)
    before = last_record(run_dir / "metrics.jsonl")
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            now = last_record(run_dir / "metrics.jsonl")
            saved = any(path.name.isdecimal() for path in (run_dir / "checkpoints").glob("*"))
            # While the old folder is being renamed, its last record is still there.
            if saved and now != before and now.get("progress", 0.0) >= 0.5:
                os.killpg(process.pid, signal.SIGKILL)
                print(f"\n>>> kill -9 at image {now['position']:,} <<<", flush=True)
                break
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    if process.wait() not in (0, -signal.SIGKILL):
        sys.exit(process.returncode)


def last_record(path: Path) -> dict[str, float]:
    """The last whole line of metrics that has a progress; empty where there is none."""
    if not path.exists():
        return {}
    for line in reversed(path.read_text().splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "progress" in record:
            return dict(record)
    return {}


def run(*command: str) -> None:
    """Run a command; its failure ends the demo."""
    print("$", " ".join(command), flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def say(text: str) -> None:
    """A headline."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
