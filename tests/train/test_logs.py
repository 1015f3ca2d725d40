import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from train.logs import rank_log


def test_a_log_holds_warnings_errors_and_where_the_process_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(warnings, "showwarning", lambda *arguments: seen.append(arguments[0]))
    with pytest.raises(ValueError, match="spoilt"), rank_log(tmp_path / "logs", 3, 4):  # noqa: PT012
        logging.getLogger("somebody").warning("a library's warning")
        logging.getLogger("somebody").info("a library's chatter")
        warnings.showwarning("seen by the user", UserWarning, "file.py", 7)
        raise ValueError("spoilt")
    assert seen == ["seen by the user"]
    text = (tmp_path / "logs" / "rank-3.log").read_text()
    assert "process 3 of 4: pid " in text
    assert "a library's warning" in text
    assert "chatter" not in text
    assert "file.py:7: UserWarning: seen by the user" in text
    assert "Traceback (most recent call last)" in text
    assert "ValueError: spoilt" in text


def test_logs_go_on_and_leave_nothing_behind(tmp_path: Path) -> None:
    handlers, show = list(logging.getLogger().handlers), warnings.showwarning
    for _ in range(2):
        with rank_log(tmp_path, 0, 1):
            pass
    assert (tmp_path / "rank-0.log").read_text().count("process 0 of 1 ends") == 2
    assert logging.getLogger().handlers == handlers
    assert warnings.showwarning is show


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.warns(UserWarning, match="no log of process 0"), rank_log(tmp_path / "logs", 0, 1):
        pass


def test_a_crash_leaves_its_stack(tmp_path: Path) -> None:
    program = (
        "import os, signal, pathlib; from train.logs import rank_log\n"
        f"with rank_log(pathlib.Path({str(tmp_path)!r}), 1, 2): os.kill(os.getpid(), signal.SIGABRT)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode != 0
    assert "Fatal Python error: Aborted" in (tmp_path / "rank-1.log").read_text()
