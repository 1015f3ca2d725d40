from pathlib import Path

import pytest

from pipeline.errors import UserError
from train.runfolder import RunFolder


def test_a_line_after_half_a_line_is_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({"position": 1})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"position": 2, "lo')
    folder.append_metrics({"position": 3})
    assert folder.read_metrics() == [{"position": 1}, {"position": 3}]


@pytest.mark.parametrize("garbage", [b"\0\0\0\0", b"\xff\xfe\n", b'{"position":'])
def test_what_a_crash_left_in_a_file_is_skipped(tmp_path: Path, garbage: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.note("start")
    with open(tmp_path / "ledger.jsonl", "ab") as file:
        file.write(garbage)
    folder.note("resume", position=5)
    assert [record["event"] for record in folder.read_ledger()] == ["start", "resume"]


def test_metrics_are_cut_back_to_a_position(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.cut_metrics(10)
    for position in (4, 8, 8, 12):
        folder.append_metrics({"position": position})
    folder.cut_metrics(8)
    assert [record["position"] for record in folder.read_metrics()] == [4, 8, 8]


def test_only_one_may_hold_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x"
    with (
        RunFolder(path).locked(),
        pytest.raises(UserError, match=r"got a live run in it \(process \d+\).*--run.dir"),
        RunFolder(path).locked(),
    ):
        pass
    with RunFolder(path).locked():
        pass


@pytest.mark.parametrize("name", ["shardset.json", "thesis.tex"])
def test_a_folder_of_something_else_is_no_place_for_a_run(tmp_path: Path, name: str) -> None:
    """It would be written into, and renamed by a fresh start."""
    RunFolder(tmp_path / "none").check_place()
    (tmp_path / ".hidden").touch()
    RunFolder(tmp_path).check_place()
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"must have a folder of its own; got .* Choose another with --run\.dir"):
        RunFolder(tmp_path).check_place()


def test_a_run_that_is_there_is_its_own_place(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.note("start")
    (tmp_path / "notes.txt").touch()
    folder.check_place()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"making the run folder .* must succeed"),
        RunFolder(tmp_path / "file" / "x").locked(),
    ):
        pass


def test_old_runs_are_set_aside_under_the_next_free_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for number in (1, 2):
        path.mkdir()
        assert RunFolder(path).set_aside() == tmp_path / f"x.old-{number}"
