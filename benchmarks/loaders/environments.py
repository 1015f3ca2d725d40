"""A virtual environment for each loader: their dependencies exclude each other.

All get the same torch, and the same Pillow and simplejpeg where they use them, from constraints.txt. An environment is
kept and used again; one whose list of packages has changed is made anew.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from benchmarks.loaders.variants import Loader

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PACKAGES = "g++ pkg-config libturbojpeg0-dev libopencv-dev"
_STAMP = "leanstream-requirements.txt"


class LoaderMissing(Exception):  # noqa: N818 (no error of the program: the run goes on without this loader)
    """This loader cannot be had on this machine; the message says why."""


def requirements(loader: Loader, torch: str) -> list[str]:
    """What pip has to install for a loader, one requirement each."""
    if loader.requirements:
        wanted = list(loader.requirements)
    else:
        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = dict(re.findall(r"^([\w-]+)(==\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    # The libraries that decode are the same for all; the rest is as each loader's own limits allow.
    for name in pins if not loader.requirements else ("pillow", "simplejpeg"):
        wanted = [f"{name}{pins[name]}" if re.match(rf"{name}(?![\w-])", line) else line for line in wanted]
    return [torch, *wanted]


def default_torch() -> str:
    """The project's pinned torch."""
    return next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


def interpreter(loader: Loader, work: Path, torch: str) -> Path:
    """The Python of a loader's environment under `work`, made where it is missing; raises `LoaderMissing`."""
    wanted = requirements(loader, torch)
    folder = work / "environments" / loader.environment
    python = folder / "bin" / "python"
    stamp = folder / _STAMP
    if stamp.exists() and stamp.read_text().splitlines() == wanted:
        return python
    _require_libraries(loader)
    print(f"installing {', '.join(wanted)} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    log = work / "logs" / f"install-{loader.environment}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", *wanted]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        errors = [line for line in log.read_text().splitlines() if line.lower().startswith("error")]
        raise LoaderMissing(f"pip could not install it: {errors[-1] if errors else f'exit code {code}'} (see {log})")
    stamp.write_text("\n".join(wanted) + "\n")
    return python


def _require_libraries(loader: Loader) -> None:
    if not loader.libraries:
        return
    if shutil.which("pkg-config") is None:
        missing = ["pkg-config"]
    else:
        missing = [
            name
            for name in loader.libraries
            if subprocess.run(["pkg-config", "--exists", name], capture_output=True, check=False).returncode
        ]
    if missing:
        raise LoaderMissing(f"its build needs {', '.join(missing)} (on Debian: apt-get install {SYSTEM_PACKAGES})")
