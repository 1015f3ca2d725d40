import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shard_tool.cli import main

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Pixels = Callable[..., Image.Image]

ROOT = Path(__file__).parents[2]
SMALL = ("--size", 16)


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shard_tool", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_the_command_line_loads_no_torch() -> None:
    code = "import sys, shard_tool.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_names_every_command() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("draw-faces", "make-shards", "inspect", "verify", "preview"):
        assert command in shown.stdout
        assert run(command, "--help").returncode == 0


def test_an_unknown_option_is_the_users_error() -> None:
    shown = run("make-shards", "raw", "--sise", "64")
    assert shown.returncode == 2
    assert "--size" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    monkeypatch.chdir(tmp_path)
    assert main(["make-shards", f"~/{photos.name}", "--size=16", "--out=~/faces", "--quiet"]) == 0
    assert (photos.parent / "faces" / "shardset.json").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--size", 0), "size must be from 1 to 4,096 pixels; got 0."),
        (("--crop", 15), "crop must be center, pad, stretch or at least the size, 16; got 15."),
        (("--quality", 101), "quality must be from 1 to 100; got 101."),
        (("--val-fraction", 1), "val-fraction must be from 0 to below 1; got 1.0."),
        (("--shard-samples", 0), "shard-samples must be at least 1; got 0."),
        (("--threads", 0), "threads must be at least 1; got 0."),
        (("--limit", 0), "limit must be at least 1; got 0."),
    ],
)
def test_a_value_out_of_range_is_one_line(
    photos: Path, tmp_path: Path, refuse: Refuse, option: tuple[object, ...], complaint: str
) -> None:
    assert complaint in refuse(photos, tmp_path / "set", *SMALL, *option)


def test_a_source_that_is_missing_or_empty_is_one_line(tmp_path: Path, refuse: Refuse) -> None:
    assert "no such folder or file" in refuse(tmp_path / "nowhere", tmp_path / "set")
    (tmp_path / "raw").mkdir()
    assert "draw-faces" in refuse(tmp_path / "raw", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_folder_that_cannot_be_written_is_one_line(photos: Path, refuse: Refuse) -> None:
    # The kernel refuses this to root as well.
    assert "Check the path" in refuse(photos, Path("/proc/leanstream/set"))
    if os.geteuid() != 0:
        photos.parent.chmod(0o500)
        assert "Permission denied" in refuse(photos, photos.parent / "set")
        photos.parent.chmod(0o700)


def test_a_file_in_the_way_is_one_line(photos: Path, refuse: Refuse) -> None:
    assert "Not a directory" in refuse(photos, photos / "a" / "00000.jpg" / "set")


def test_debug_adds_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make-shards", str(tmp_path / "nowhere"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line(
    photos: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_tool.build.reading.make_sample", lambda data, recipe: 1 / 0)
    assert "ZeroDivisionError" in refuse(photos, tmp_path / "set", *SMALL, code=1)


def test_the_set_is_named_after_source_and_size(photos: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "shard_tool", "make-shards", "raw", "--size", "16"],
        cwd=photos.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (photos.parent / "shards" / "raw-16" / "shardset.json").exists()
    assert "shards/raw-16 is complete: 60 images of 16 px" in shown.stdout
    assert "Next: accelerate launch --quiet train/run.py --data.shards shards/raw-16" in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path, make: Make, hashes: Hashes) -> None:
    (photos / "empty.jpg").touch()
    (photos / "notes.md").touch()
    before = hashes(tmp_path)
    printed = make(photos, tmp_path / "set", *SMALL, "--dry-run", "--val-fraction", 0.2)
    assert hashes(tmp_path) == before
    assert not (tmp_path / "set").exists()
    assert "made of 61 photos" in printed
    assert "1 empty file of 61 tried" in printed
    assert "ignored   not an image 1" in printed


def test_a_dry_run_knows_the_space(photos: Path, tmp_path: Path, make: Make) -> None:
    printed = make(photos, tmp_path / "set", *SMALL, "--dry-run")
    estimate = float(printed.partition("space     about ")[2].partition(" MB")[0])
    make(photos, tmp_path / "set", *SMALL)
    size = sum(path.stat().st_size for path in (tmp_path / "set").iterdir()) / 1e6
    assert abs(estimate - size) < 0.05


def test_quiet_prints_nothing(photos: Path, tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(photos, tmp_path / "set", *SMALL, "--quiet") == ""
    assert capsys.readouterr().err == ""


def test_draw_faces_passes_its_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: dict[str, Any] = {}

    def fake(folder: Path, *, progress: Callable[[int], None], **options: Any) -> None:
        called.update(options, folder=folder)
        progress(3)

    monkeypatch.setattr("demo.draw_faces", fake)
    assert main(["draw-faces", str(tmp_path / "raw"), "--count", "3", "--size", "100", "--seed", "5"]) == 0
    assert called == {"folder": tmp_path / "raw", "count": 3, "size": 100, "seed": 5, "workers": None}
    assert f"Next: shard_tool make-shards {tmp_path / 'raw'} --size 64" in capsys.readouterr().out
