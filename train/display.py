"""What a person sees while a run trains: a live panel in a terminal, a plain line every few seconds elsewhere."""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL_S = 5.0


@dataclass
class Status:
    """The figures on display."""

    name: str
    total_images: int
    epoch_samples: int
    position: int = 0
    updates: int = 0
    loss: float = float("nan")
    psnr_db: float = float("nan")
    kl: float = float("nan")
    learning_rate: float = 0.0
    images_per_s: float = 0.0
    wait_share: float = 0.0
    memory_bytes: int = 0
    gpu_bytes: int = 0
    saved_at: float | None = None
    saved_position: int | None = None
    validation: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def eta_s(self) -> float:
        """Seconds to go at the present speed."""
        return (self.total_images - self.position) / self.images_per_s if self.images_per_s else float("inf")

    def fields(self) -> dict[str, str]:
        """Captions and values, in the order of display."""
        saved = "not yet"
        if self.saved_at is not None:
            saved = f"{duration(time.monotonic() - self.saved_at)} ago, at image {self.saved_position:,}"
        memory = f"{self.memory_bytes / 2**20:,.0f} MiB"
        if self.gpu_bytes:
            memory += f", GPU {self.gpu_bytes / 2**20:,.0f} MiB"
        epochs = self.total_images / self.epoch_samples
        return {
            "step": f"{self.updates:,}",
            "epoch": f"{self.position / self.epoch_samples:.2f} of {epochs:.2f}",
            "loss": f"{self.loss:.1f}",
            "train PSNR": f"{self.psnr_db:.2f} dB",
            "KL": f"{self.kl:.1f} nats",
            "rate": f"{self.learning_rate:.2e}",
            "images/s": f"{self.images_per_s:,.0f}",
            "data wait": f"{self.wait_share:.1%}",
            "memory": memory,
            "ETA": duration(self.eta_s),
            "last save": saved,
            **({"validation": self.validation} if self.validation else {}),
        }


class Display:
    """A context manager that shows a `Status`; only the first process has one that is enabled."""

    def __init__(self, status: Status, console: Console, *, enabled: bool) -> None:
        self.status, self.console, self._enabled = status, console, enabled
        self._live = Live(console=console, auto_refresh=False) if enabled and console.is_terminal else None
        self._next_refresh = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.refresh(force=self._live is not None)
        if self._live is not None:
            self._live.stop()

    def refresh(self, *, force: bool = False) -> None:
        """Show the status if it is time, or in any case."""
        now = time.monotonic()
        if not self._enabled or not self.status.images_per_s or (now < self._next_refresh and not force):
            return
        if self._live is not None:
            self._next_refresh = now + 0.25
            self._live.update(self._panel(), refresh=True)
        else:
            self._next_refresh = now + PLAIN_INTERVAL_S
            line = "  ".join(f"{caption} {value}" for caption, value in self.status.fields().items())
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def say(self, text: str) -> None:
        """Print a line above the panel."""
        if self._enabled:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _panel(self) -> Panel:
        table = Table.grid(padding=(0, 2), expand=True)
        items = list(self.status.fields().items())
        for begin in range(0, len(items), 2):
            # Text and not markup: a line printed above the panel without markup would show the panel's, too.
            table.add_row(*(cell for pair in items[begin : begin + 2] for cell in map(Text, pair, ("dim", ""))))
        bar = ProgressBar(total=self.status.total_images, completed=self.status.position)
        # The bar comes last: it ends without a line break.
        return Panel(Group(table, bar), title=escape(self.status.name), border_style="dim")


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 42s, 3m07s, 2h05m."""
    if seconds == float("inf"):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
