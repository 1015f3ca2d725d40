"""The page of `explore app` in headless Chromium: for its tests and for the benchmark of its answers."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).parents[1]
START_S, STOP_S = 120, 20


def missing() -> str | None:
    """What of Chromium and its driver this machine lacks, as one line; None where nothing is missing."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    remedy = "apt-get install chromium chromium-driver"
    return f"no {' and no '.join(lacking)} on this machine: {remedy}" if lacking else None


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """URL and process of `explore app ARGUMENTS`, ended at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "explore.cli", "app", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    killer = contextlib.ExitStack()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            url = re.search(r"http://127\.0\.0\.1:\d+/", line)
            if url:
                yield url[0], process
                return
        raise RuntimeError(f"the page did not start:\n{''.join(said)}")
    finally:
        killer.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def browsing(
    folder: Path, width: int = 1280, height: int = 900, more: Sequence[str] = ()
) -> Iterator[webdriver.Chrome]:
    """A headless Chromium of its own in an empty `folder`; downloads go to `folder`/downloads."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}",
        *more,
    ):
        options.add_argument(argument)
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # Named, so that selenium looks for no driver on the network.
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(30)
        driver.set_page_load_timeout(60)
        yield driver
    finally:
        driver.quit()
