"""Every command and every program in the documents runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from explore.cli import main as explore
from explore.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
SHORTER = {"--count": "60", "--size": "96"}
"""Numbers of draw-faces that would take minutes."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of all documents in one language."""
    text = "".join((ROOT / name).read_text() for name in DOCUMENTS)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    """Every shell command in a fenced block, and draw-faces, which stands in a sentence."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`(shard_tool draw-faces [^`]*)`", (ROOT / "README.md").read_text())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository's root, with photos in raw/."""
    home = tmp_path_factory.mktemp("home")
    for name in ("train", "configs", "pipeline"):
        (home / name).symlink_to(ROOT / name)
    run(home, [word for line in commands() if "draw-faces" in line for word in shorter(line)])
    return home


def shorter(command: list[str]) -> list[str]:
    pairs = zip(["", *command], command, strict=False)
    return [SHORTER.get(before, word) for before, word in pairs]


def run(home: Path, command: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def test_the_commands_for_your_photos_run_one_after_the_other(home: Path) -> None:
    ours = [line for line in commands() if line[0] in ("shard_tool", "accelerate", "explore")]
    photos = [line for line in ours if "draw-faces" not in line]
    assert [line[0] for line in photos] == ["shard_tool", "accelerate", "explore"]
    for line in photos:
        small = ["--train.total-images=256", "--model.widths", "8", "8", "8", "8"] if line[0] == "accelerate" else []
        run(home, [*line, *small])
    run_folder = home / "runs" / "default-raw-64"
    assert (run_folder / "summary.json").exists()
    assert list((run_folder / "explore").glob("*.png"))


def test_the_commands_of_explore_run_one_after_the_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After those for your photos, on what they left; in this process, as the libraries take seconds to load."""
    monkeypatch.chdir(home)
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "explore.md").read_text(), re.DOTALL)
    small = {
        "fit-prior": ["--components", "2"],
        "latents": ["--perplexity", "5"],
        "score": ["--seeds", "1", "--split", "train"],
    }
    lines = [shlex.split(line) for line in block.splitlines()]
    known = set(COMMANDS) - {"app"}
    assert {line[1] for line in lines} == known
    for line in lines:
        fewer = ["20" if word == "1000" else word for word in line]
        assert explore([*fewer[1:], *small.get(line[1], [])]) == 0
    made = {path.name for path in (home / "runs" / "default-raw-64" / "explore").iterdir()}
    assert all(any(name.startswith(command) for name in made) for command in known)
    assert len(list((home / "new-faces").glob("*.png"))) == 20


def test_every_other_command_is_a_target_of_make_or_a_tool_of_the_environment() -> None:
    for line in commands():
        if line[0] == "make":
            subprocess.run(["make", "--dry-run", *line[1:]], cwd=ROOT, capture_output=True, check=True)
        else:
            assert line[0] in ("shard_tool", "accelerate", "explore", ".venv/bin/pre-commit")


def test_the_programs_run(home: Path) -> None:
    programs = blocks("python")
    assert programs
    for program in programs:
        # The loader is endless, and so is the example.
        once = program.rstrip() + "\n        break\n"
        run(home, [sys.executable, "-c", once])


def test_architecture_stays_short_and_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= 150
    room = ""
    for row in re.findall(r"^\|(.*)\|$", text, re.MULTILINE)[2:]:
        cells = [cell.strip() for cell in row.split("|")]
        room = cells[0].strip("`") or room
        for name in re.findall(r"`([\w.]+(?:\.py|/))`", cells[1]):
            assert (ROOT / room / name).exists(), f"{room}{name}"
