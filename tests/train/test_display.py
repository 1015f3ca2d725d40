import io

import pytest
from rich.console import Console

from train.display import Display, Status, duration


def shown(*, terminal: bool, **values: object) -> str:
    """What a display of these figures writes."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    status = Status("run [x]", 1000, 100, updates=5, position=250)
    with Display(status, console, enabled=True) as display:
        display.refresh()
        for name, value in values.items():
            setattr(status, name, value)
        display.refresh()
        display.say("a line with [brackets] and [/more]")
    return out.getvalue()


FIGURES = {
    "loss": 12.34,
    "psnr_db": 21.5,
    "kl": 33.3,
    "images_per_s": 50.0,
    "wait_share": 0.125,
    "memory_bytes": 300 * 2**20,
    "saved_at": 0.0,
    "saved_position": 200,
    "validation": "val 20 dB",
}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_gets_a_panel_and_others_a_line(terminal: bool) -> None:
    text = shown(terminal=terminal, **FIGURES)
    for part in (
        "2.50 of 10.00",
        "12.3",
        "21.50 dB",
        "33.3 nats",
        "12.5%",
        "300 MiB",
        "15s",
        "at image 200",
        "val 20 dB",
    ):
        assert part in text
    assert ("╭" in text) == terminal
    assert "dim]" not in text
    assert "a line with [brackets] and [/more]" in text
    assert ("run [x]" in text) == terminal


def test_nothing_is_shown_before_there_are_figures() -> None:
    """A run that was resumed has updates, but no loss yet."""
    assert "nan" not in shown(terminal=False)


def test_a_display_that_is_not_enabled_is_silent() -> None:
    out = io.StringIO()
    with Display(Status("a", 10, 5, images_per_s=1.0), Console(file=out), enabled=False) as display:
        display.refresh(force=True)
        display.say("hello")
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (187, "3m07s"), (7500, "2h05m"), (float("inf"), "unknown")],
)
def test_durations_read_as_a_person_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
