"""The page of `explore app` as a person meets it: a real server, a real browser."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.browser import browsing, missing, served
from explore.app import FIRST_PORT, listen
from explore.cli import main
from pipeline.errors import UserError
from tests.explore.untrained import SIZE, save_model
from tests.helpers import make_image, make_shard_set

PATIENCE_S = 60
"""For what a crowded machine is slow at; nothing waits that long where all is well."""


@dataclass(frozen=True)
class Served:
    """A page that runs in a process of its own."""

    url: str
    process: "subprocess.Popen[str]"
    uploads: Path
    """Where the process makes its temporary folders."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("app")
    shards = make_shard_set(
        folder / "faces", samples={"train": 40, "val": 12}, size=SIZE, attributes=("Smiling", "Eyeglasses")
    )
    model, temporary = save_model(folder / "model"), folder / "tmp"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        with served("--model", str(model), "--shards", str(shards.folder), "--port", "0") as (url, process):
            yield Served(url, process, temporary)


class Browser:
    """What a person does on the page and sees there."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self) -> "Browser":
        """A fresh visit, as of another person."""
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(self.url)
        self.until(lambda: self.picture("#face") and self.find("#attribute-Smiling input[type=range]"))
        return self

    def until(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives as soon as that is true."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, PATIENCE_S, 0.02, [StaleElementReferenceException])
        return waiting.until(lambda _: condition())

    def find(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def picture(self, selector: str) -> bytes:
        """The file in the picture of an element, empty where there is none in sight."""
        source = self.driver.execute_script(
            "const image = document.querySelector(arguments[0] + ' img');"
            "return image && image.offsetParent ? image.src : '';",
            selector,
        )
        return base64.b64decode(source.partition(",")[2])

    def pixels(self, selector: str) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(self.picture(selector))) as image:
            return np.asarray(image)

    def text(self, selector: str) -> str:
        return str(self.driver.execute_script("return document.querySelector(arguments[0]).innerText", selector))

    def changed(self, selector: str, act: Callable[[], Any]) -> bytes:
        """The new picture of an element once `act` has led to another one."""
        before = self.picture(selector)
        act()
        found: bytes = self.until(lambda: (now := self.picture(selector)) != before and now)
        return found

    def press(self, selector: str) -> None:
        (button,) = self.find(selector)
        button.click()

    def show_tab(self, name: str) -> None:
        (tab,) = [tab for tab in self.find("button[role=tab]") if tab.text == name and tab.is_displayed()]
        tab.click()

    def slide(self, name: str, *keys: str) -> None:
        (slider,) = self.find(f"#{name} input[type=range]")
        slider.send_keys(*keys)

    def upload(self, name: str, path: Path) -> None:
        """Choose a file for the button of that name."""
        # A click on the button empties the field first, or the same file again would be no change.
        field = self.driver.execute_script(
            "const field = document.getElementById(arguments[0]).parentElement.querySelector('input[type=file]');"
            "field.value = ''; return field;",
            name,
        )
        field.send_keys(str(path))

    def fits(self, width: int) -> bool:
        """Whether the screen has that many pixels across, and all of the page is on it."""
        screen, page = self.driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        return bool(screen == width and page <= width)

    def errors(self) -> list[str]:
        """What the console called an error since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self, part: str) -> int:
        """How many requests of this visit had `part` in their path."""
        return int(
            self.driver.execute_script(
                "return performance.getEntriesByType('resource').filter(e => e.name.includes(arguments[0])).length",
                part,
            )
        )


@pytest.fixture(scope="module")
def browser(page: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    with browsing(tmp_path_factory.mktemp("browser")) as driver:
        yield Browser(driver, page.url)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "someone.png"
    Image.fromarray(make_image("val", 5, 3 * SIZE)).save(path)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 cut off")
    return path


END, HOME, RIGHT = "\ue010", "\ue011", "\ue014"
"""Keys of a slider: its end, its beginning, one step up."""


def test_a_slider_moves_and_the_picture_changes(browser: Browser) -> None:
    browser.open()
    seen = [browser.picture("#face")]
    for name in ("attribute-Smiling", "attribute-Eyeglasses"):
        seen += [browser.changed("#face", lambda name=name, key=key: browser.slide(name, key)) for key in (END, HOME)]
    assert len(set(seen)) == len(seen)
    assert browser.text("#face figcaption") == "Random face 0, edited"


def test_the_strongest_dimensions_have_sliders(browser: Browser) -> None:
    browser.open()
    browser.press("#dimensions .label-wrap")
    sliders = browser.until(lambda: browser.find("#dimensions input[type=range]"))
    browser.until(lambda: sliders[0].is_displayed())
    assert len(sliders) == 4
    browser.changed("#face", lambda: sliders[0].send_keys(END))


def test_reset_puts_the_sliders_back_with_one_request(browser: Browser) -> None:
    browser.open()
    first = browser.picture("#face")
    browser.changed("#face", lambda: browser.slide("attribute-Smiling", END))
    before = browser.requests("/run/")
    assert browser.changed("#face", lambda: browser.press("#reset")) == first
    (number,) = browser.find("#attribute-Smiling input[type=number]")
    browser.until(lambda: number.get_attribute("value") == "0")
    # Had the sliders fired, their requests would be before this one's.
    browser.changed("#face", lambda: browser.slide("attribute-Eyeglasses", END))
    assert browser.requests("/run/") == before + 2


def test_a_number_out_of_range_is_the_nearest_in_it(browser: Browser) -> None:
    browser.open()
    ends = browser.changed("#face", lambda: browser.slide("attribute-Smiling", END))
    browser.changed("#face", lambda: browser.press("#reset"))
    (number,) = browser.find("#attribute-Smiling input[type=number]")
    number.clear()
    number.send_keys("4444")
    browser.until(lambda: browser.picture("#face") == ends)


def test_a_random_face_is_that_of_the_seed_beside_it(browser: Browser) -> None:
    browser.open()
    first = browser.picture("#face")
    second = browser.changed("#face", lambda: browser.press("#random"))
    assert browser.text("#face figcaption") == "Random face 1"
    (seed,) = browser.find("#seed input")
    browser.until(lambda: seed.get_attribute("value") == "1")
    assert browser.changed("#face", lambda: seed.send_keys("\ue003", "0")) == first
    assert second != first


def test_two_visitors_do_not_see_each_others_faces(browser: Browser) -> None:
    browser.open()
    first = browser.picture("#face")
    browser.changed("#face", lambda: browser.press("#random"))
    browser.open()
    assert browser.picture("#face") == first
    moved = browser.changed("#face", lambda: browser.slide("attribute-Smiling", END))
    browser.changed("#face", lambda: browser.press("#reset"))
    assert browser.changed("#face", lambda: browser.slide("attribute-Smiling", END)) == moved


def test_a_photo_goes_in_and_its_reconstruction_can_be_edited(browser: Browser, page: Served, photo: Path) -> None:
    browser.open()
    answer = browser.changed("#face", lambda: browser.upload("upload", photo))
    browser.until(lambda: browser.picture("#photo"))
    original = browser.pixels("#photo").astype(float)
    with Image.open(photo) as image:
        wanted = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS), float)
    assert np.abs(original - wanted).mean() < 2
    decibels = 10 * np.log10(255**2 / np.square(original - browser.pixels("#face")).mean())
    assert browser.text("#face figcaption") == f"Reconstruction, {decibels:.1f} dB PSNR"
    assert browser.changed("#face", lambda: browser.slide("attribute-Smiling", END)) != answer
    assert browser.picture("#photo")
    assert [path for path in page.uploads.rglob("*") if path.name == photo.name] == []
    # A random face takes the photo away, and the same photo may come again.
    browser.changed("#face", lambda: browser.press("#random"))
    browser.until(lambda: not browser.picture("#photo"))
    assert browser.changed("#face", lambda: browser.upload("upload", photo)) == answer


def test_a_broken_file_gets_a_friendly_answer_until_a_photo_comes(
    browser: Browser, page: Served, broken: Path, photo: Path
) -> None:
    browser.open()
    before = browser.picture("#face")
    browser.upload("upload", broken)
    (alert,) = browser.until(lambda: browser.find("#notice [role=alert]"))
    assert alert.is_displayed()
    assert alert.text.startswith("broken.jpg must be a photo")
    assert str(page.uploads) not in alert.text
    assert browser.picture("#face") == before
    assert browser.errors() == []
    browser.changed("#face", lambda: browser.upload("upload", photo))
    browser.until(lambda: not browser.find("#notice [role=alert]"))


def saved(folder: Path, ending: str) -> Path:
    """The one file of that ending, where it is whole."""
    found = [path for path in folder.glob(f"*{ending}") if path.stat().st_size]
    return found[0] if len(found) == 1 else Path()


def test_the_picture_is_downloaded_as_it_is_seen(browser: Browser, downloads: Path) -> None:
    browser.open()
    browser.changed("#face", lambda: browser.slide("attribute-Smiling", END))
    browser.press("#scaling label:nth-child(2)")
    browser.press("#download")
    path = browser.until(lambda: (path := saved(downloads, ".png")).name and path)
    assert path.name == "face-0.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    assert np.array_equal(pixels, browser.pixels("#face").repeat(12, 0).repeat(12, 1))


def test_a_morph_goes_from_the_left_face_to_the_right_one(
    browser: Browser, downloads: Path, photo: Path, broken: Path
) -> None:
    browser.open()
    browser.show_tab("Morph")
    browser.until(lambda: browser.picture("#morph"))
    browser.changed("#morph", lambda: browser.press("#path label:nth-child(2)"))
    right = browser.changed("#morph", lambda: browser.slide("share", END))
    assert right == browser.picture("#right")
    left = browser.changed("#morph", lambda: browser.slide("share", HOME))
    assert left == browser.picture("#left")
    browser.upload("left-upload", broken)
    browser.until(lambda: browser.find("#left-notice [role=alert]"))
    assert browser.picture("#left") == left
    # Another face at the end that is not in sight, then one at the end that is.
    browser.changed("#right", lambda: browser.press("#right-random"))
    assert browser.text("#right figcaption") == "Random face 2"
    answer = browser.changed("#left", lambda: browser.upload("left-upload", photo))
    browser.until(lambda: browser.picture("#morph") == answer)
    browser.press("#download-gif")
    path = browser.until(lambda: (path := saved(downloads, ".gif")).name and path)
    assert browser.errors() == []
    with Image.open(path) as film:
        assert (film.format, getattr(film, "is_animated", False)) == ("GIF", True)


def test_the_page_asks_nothing_of_other_hosts_and_has_no_errors(browser: Browser, page: Served, photo: Path) -> None:
    browser.open()
    browser.changed("#face", lambda: browser.upload("upload", photo))
    browser.show_tab("Morph")
    browser.until(lambda: browser.picture("#morph"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    asked = {urlsplit(url).netloc for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
    assert asked == {urlsplit(page.url).netloc}
    assert browser.errors() == []
    # Nor would it, had somebody the browser: nothing here is written down in it.
    assert browser.driver.execute_script("return Object.keys(localStorage).filter(key => key.includes('run'))") == []


@pytest.fixture
def screen(browser: Browser) -> Iterator[Callable[[int], None]]:
    """Gives the browser a screen of some width, a phone's where that is small."""

    def resize(width: int) -> None:
        metrics = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 768}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    yield resize
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_wider_than_the_screen(browser: Browser, screen: Callable[[int], None]) -> None:
    browser.open()
    for tab, picture in (("Face", "#face"), ("Morph", "#morph")):
        browser.show_tab(tab)
        browser.until(lambda picture=picture: browser.picture(picture))
        for width in (360, 768, 1280):
            screen(width)
            browser.until(lambda width=width: browser.fits(width))


def test_the_picture_stays_in_sight_of_a_phone_while_sliders_move(
    browser: Browser, screen: Callable[[int], None]
) -> None:
    screen(390)
    browser.open()
    browser.press("#dimensions .label-wrap")
    browser.until(lambda: browser.find("#dimensions input[type=range]"))
    top, bottom = browser.driver.execute_script(
        "document.querySelector('#dimensions').scrollIntoView({block: 'end'});"
        "const box = document.querySelector('#face img').getBoundingClientRect(); return [box.top, box.bottom];"
    )
    assert 0 <= top < bottom < 400


def status(url: str, host: str | None = None) -> int:
    """The answer's status; `host` is the name that a browser believes to be talking to."""
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_it_answers_to_this_machines_names_alone(page: Served) -> None:
    assert status(page.url) == 200
    assert status(page.url, host="faces.example") == 400


@pytest.mark.parametrize("path", ["docs", "gradio_api/file=/etc/hostname", "gradio_api/runs"])
def test_it_offers_nothing_beside_the_page(page: Served, path: str) -> None:
    assert status(page.url + path) in (403, 404)


def test_a_taken_port_is_one_line(page: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = urlsplit(page.url).port
    assert main(["app", "--model", str(tmp_path), "--port", str(port)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: --port must be free; got {port} (")


def test_without_a_port_the_next_free_one_is_taken() -> None:
    with listen(None) as first, listen(None) as second:
        assert FIRST_PORT <= first.getsockname()[1] < second.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"


def test_no_free_port_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr("explore.app.FIRST_PORT", taken.getsockname()[1])
        monkeypatch.setattr("explore.app.PORTS", 1)
        with pytest.raises(UserError, match="must be free; got none"):
            listen(None)


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_what_is_no_port_is_one_line(tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--model", str(tmp_path), "--port", port]) == 2
    assert "--port must be from 0 to 65535" in capsys.readouterr().err


def test_it_was_quiet_and_ctrl_c_ends_it_with_all_uploads(page: Served) -> None:
    """Last of all: it takes the page away."""
    assert page.process.stdout is not None
    assert [path.name for path in page.uploads.iterdir() if path.name.startswith("leanstream-app-")]
    os.kill(page.process.pid, signal.SIGINT)
    said = page.process.stdout.read()
    assert page.process.wait(PATIENCE_S) == 0
    assert said == "The page is closed.\n"
    assert list(page.uploads.glob("leanstream-app-*")) == []
