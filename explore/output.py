"""What a command writes: pictures, and always the numbers behind them."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from explore.commands import Common
from pipeline.files import atomic_writer, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Output:
    """The files of one command in one folder; `written` lists them in order."""

    def __init__(self, folder: Path, command: Common) -> None:
        self.folder, self._command = folder, command
        self.written: list[Path] = []

    def picture(self, name: str, image: Image.Image) -> Path:
        """Write `NAME.png`."""
        return self._write(f"{name}.png", _encoded(image))

    def figure(self, name: str, figure: "Figure") -> Path:
        """Write a matplotlib figure as `NAME.png`, the same bytes for the same figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return self._write(f"{name}.png", buffer.getvalue())

    def numbers(self, name: str, values: Mapping[str, Any]) -> Path:
        """Write `NAME.json`: the values and the settings that they came from."""
        path = self._ready(f"{name}.json")
        settings = {key: _plain(value) for key, value in asdict(self._command).items() if key != "debug"}
        write_json(path, {**values, "settings": settings})
        return path

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
        """Write `NAME.csv`, with a line of column names."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        return self._write(f"{name}.csv", text.getvalue().encode())

    def file(self, name: str, data: bytes) -> Path:
        """Write any other file, under its whole name."""
        return self._write(name, data)

    def _write(self, name: str, data: bytes) -> Path:
        path = self._ready(name)
        with atomic_writer(path) as file:
            file.write(data)
        return path

    def _ready(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.append(path)
        return path


def _plain(value: Any) -> Any:
    """An option's value in terms of JSON."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
