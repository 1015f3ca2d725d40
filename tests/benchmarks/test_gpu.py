"""The GPU benchmark: a whole tiny run of it on a CPU, and sections that fail, come too late or have a process."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks import gpu
from pipeline.errors import UserError
from tests.helpers import make_shard_set

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tries out what a CPU can")


class Found(NamedTuple):
    report: dict
    markdown: str
    told: str

    def row(self, name: str) -> dict:
        return self.report[name]["rows"][0]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Found:
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", f"--out={out}", f"--work={out / 'work'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return Found(json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text(), done.stdout)


@pytest.fixture
def bench(tmp_path) -> gpu.Bench:
    faces = make_shard_set(tmp_path / "faces", size=32)
    return gpu.Bench(tmp_path, time.monotonic() + 400, faces.folder, tiny=True)


def test_every_section_has_its_rows_and_its_table(found):
    assert list(found.report) == list(gpu.SECTIONS)
    for name, section in found.report.items():
        assert section["rows"], name
        assert section["error"] is None
        assert f"### {name}\n\n{section['about']}\n\n| " in found.markdown
        assert f" s  {name}: " in found.told


def test_a_killed_run_goes_on_as_if_nothing_had_been(found):
    row = found.row("resume")
    assert 0 < row["went_on_at_image"] <= row["killed_at_image"] < 40 * 8
    assert row["difference_before"] == row["of_first_update_after"] == row["difference_after"] == 0
    assert row["every_image_once"]


def test_an_overflow_is_provoked_and_replayed(found):
    row = found.row("overflow")
    assert row["replays"] > 0
    assert row["loss_scale_after"] == row["loss_scale_before"] / 2 ** row["replays"]
    assert row["finite"]
    assert row["position_right"]


def test_memory_is_planned_and_kept_to(found):
    row = found.row("budget")
    assert row["within_budget"]
    assert row["micro_batch"] == 16
    assert row["peak_over_planned"] == row["peak_bytes"] / row["planned_bytes"] > 0.3
    assert "skipped" in found.row("memory")


def test_our_loop_is_measured_beside_a_bare_one(found):
    assert [row["model"] for row in found.report["speed"]["rows"]] == ["conv", "residual"]
    for row in found.report["speed"]["rows"]:
        assert row["ratio"] == row["ours_images_per_s"] / row["bare_images_per_s"] > 0
        assert 0 <= row["data_wait_share"] < 1
    assert [row["layout"] for row in found.report["layout"]["rows"]] == ["channels_last", "contiguous_format"]
    assert all(row["bare_images_per_s"] > 0 for row in found.report["layout"]["rows"])


def test_what_the_host_does_is_counted(found):
    assert found.row("start")["updates"] == 2
    assert found.row("start")["device"] == "CPU"
    assert 100 < found.row("launches")["operators"] < 3000
    assert 0 <= found.row("wait")["data_wait_share"] < 1
    pause = found.row("pause")
    assert pause["saves"] >= 2
    assert 0 <= pause["pause_median_ms"] <= pause["pause_max_ms"]


def test_training_ends_with_a_score(found):
    row = found.row("celeba")
    assert row["images"] == 64
    assert row["validations"] == 1
    assert 5 < row["psnr_db"] < 40


def test_a_section_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def broken(_: gpu.Bench):
        """Nothing."""
        yield {"seen": 1}
        raise RuntimeError("CUDA error: an illegal memory access\nand much more")

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": broken, "machine": gpu.machine})
    folders = [f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}"]
    assert gpu.main(folders) == 1
    markdown = (tmp_path / "out" / "gpu.md").read_text()
    assert (
        "| seen |\n| --- |\n| 1 |\n\nFailed: RuntimeError: CUDA error: an illegal memory access\n\n### mach" in markdown
    )
    assert f"| {torch.__version__} |" in markdown
    assert "broken failed: RuntimeError: CUDA error: an illegal memory access\n" in capsys.readouterr().out
    assert gpu.main([*folders, "--section=machine"]) == 0


def test_sections_whose_turn_comes_too_late_are_skipped(tmp_path):
    assert gpu.main([f"--out={tmp_path}", f"--work={tmp_path}", "--seconds=0"]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report) == list(gpu.SECTIONS)
    assert all("--seconds" in section["rows"][0]["skipped"] for section in report.values())


def test_a_section_in_a_process_of_its_own_hands_over_rows_and_errors(bench):
    rows = list(gpu.in_a_process("layout", bench))
    assert [row["layout"] for row in rows] == ["channels_last", "contiguous_format"]
    missing = gpu.Bench(bench.work, bench.ends, bench.work / "missing", tiny=True)
    with pytest.raises(UserError, match="missing must be a finished shard set"):
        list(gpu.in_a_process("wait", missing))
    late = gpu.Bench(bench.work, time.monotonic() - gpu.GRACE_S, bench.given, tiny=True)
    with pytest.raises(UserError, match="must end by itself; got exit status -9"):
        list(gpu.in_a_process("wait", late))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [("peak_bytes", 2 << 30, "2.0 GiB"), ("data_wait_share", 0.0123, "1.2%"), ("ratio", 0.98765, "0.988"),
     ("images_per_s", 12345.6, "12,346"), ("images", 8_060, "8,060"), ("finite", True, "yes"), ("card", "T4", "T4")],
)  # fmt: skip
def test_values_are_shown_for_people(key, value, shown):
    assert gpu.show(key, value) == shown


def test_the_page_of_benchmarks_names_every_section():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    table = page.partition("| section | question |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in row.split("|")[1].strip().split(", ")]
    assert named == list(gpu.SECTIONS)
