"""What the commands left in a run's explore folder, as sections of a page: `NAME.png` with its `NAME.json` and `.csv`.

A file belongs to the section of its first word; one that no section knows comes last, under its own name.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from explore.html.embed import Picture, embed_file
from explore.html.wording import UNKNOWN, flat, label, show, without_places
from pipeline.format import SPLITS

PICTURES, NUMBERS = (".png", ".gif", ".jpg", ".jpeg", ".webp"), (".json", ".csv")
MOST_ROWS, MOST_COLUMNS = 100, 24
_MOST_PICTURES = 16
"""In a section: thousands of samples belong in their folder."""
_MOST_TABLE_BYTES = 32 << 20
_OF_THE_COMMAND = ("run", "model", "shards", "out", "debug", "photos", "faces")
"""Settings that name places, or what the picture shows anyway."""


@dataclass(frozen=True)
class Table:
    """Rows of text below a line of names."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left_out: int = 0
    """Rows that are in the file only."""
    narrowed: int = 0
    """Columns that are in the file only."""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """By column, whether all of it are numbers."""
        return tuple(all(_is_number(row[place]) for row in self.rows) for place in range(len(self.head)))


@dataclass
class Exhibit:
    """The files of one name."""

    name: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    settings: str = ""
    """The command's options, in words."""


@dataclass(frozen=True)
class Kind:
    """A section, and the first words of the names that belong to it."""

    words: tuple[str, ...]
    title: str
    lead: str
    command: str
    """What makes it, where nothing is there yet."""
    tables_first: bool = False
    """Whether its tables are what one wants to see."""


KINDS = (
    Kind(
        ("reconstruct",),
        "Reconstructions",
        "Originals above, and below what the model makes of them from its latent code alone.",
        "reconstruct",
    ),
    Kind(
        ("sample", "samples", "prior", "priors", "fit", "neighbours", "mixture"),
        "New faces",
        "Decoded from random draws: nobody looks like this.",
        "sample",
    ),
    Kind(
        ("latents", "latent", "tsne", "histograms", "dimensions", "kl", "posterior", "units"),
        "Latent space",
        "Where the faces lie in the latent space, and how close that is to the prior N(0, I).",
        "latents",
    ),
    Kind(
        ("attributes", "attribute", "directions", "direction", "apply", "strips"),
        "Attributes",
        "Directions in the latent space that change one attribute of a face.",
        "attributes",
    ),
    Kind(
        ("morph", "morphs"),
        "Morphs",
        "From one face to another, along the straight line and along the great circle.",
        "morph",
    ),
    Kind(
        ("score", "scores", "fid", "kid", "distances"),
        "Scores",
        "How close reconstructions and new faces are to real ones; the floor is real images against real ones.",
        "score",
        tables_first=True,
    ),
)
REST = Kind((), "More", "", "")


@dataclass(frozen=True)
class Section:
    """One kind's exhibits."""

    kind: Kind
    exhibits: list[Exhibit]
    left_out: int
    """Pictures that are in the folder only."""


def read_sections(folder: Path, missing: list[str]) -> list[Section]:
    """The sections of all results in `folder`, in order; a damaged file is named in `missing`."""
    by_kind: dict[Kind, list[Exhibit]] = {kind: [] for kind in (*KINDS, REST)}
    left_out = dict.fromkeys(by_kind, 0)
    for name, paths in sorted(_by_name(folder).items()):
        kind = next((kind for kind in KINDS if _first_word(name) in kind.words), REST)
        room = _MOST_PICTURES - sum(len(exhibit.pictures) for exhibit in by_kind[kind])
        pictures = [path for path in paths if path.suffix.lower() in PICTURES]
        left_out[kind] += len(pictures[room:])
        numbers = [path for path in paths if path.suffix.lower() in NUMBERS]
        exhibit = _exhibit(name, kind, pictures[:room] + numbers, missing)
        if exhibit.pictures or exhibit.facts or exhibit.tables:
            by_kind[kind].append(exhibit)
    return [Section(kind, exhibits, left_out[kind]) for kind, exhibits in by_kind.items() if exhibits]


def table_of(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table of values of any kind; of many rows the first `MOST_ROWS`."""
    found: list[tuple[str, ...]] = []
    left_out = 0
    for row in rows:
        if len(found) < MOST_ROWS:
            found.append(tuple(show(value, name) for value, name in zip(row, head, strict=True)))
        else:
            left_out += 1
    return Table(title, tuple(map(label, head)), found, left_out)


def _upright(table: Table) -> Table:
    """A table of few rows and many columns with both exchanged: a screen is longer than wide."""
    if len(table.head) < 8 or len(table.rows) > 4 or table.left_out:
        return table
    rows = list(zip(table.head, *table.rows, strict=True))
    return Table(table.title, rows[0], rows[1:])


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """The files of each name, pictures first; films beside the strip that they belong to."""
    found: dict[str, list[Path]] = {}
    paths = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    stems = {path.stem for path in paths if path.suffix == ".json"}
    order = (*PICTURES, *NUMBERS)
    for path in sorted(paths, key=lambda path: (order.index(path.suffix) if path.suffix in order else 0, path.name)):
        if path.suffix.lower() in order and not path.name.startswith("."):
            # `morph-linear.gif` belongs to `morph.json`: the longest name with settings of its own.
            owner = next((stem for stem in _longer_names(path.stem) if stem in stems), path.stem)
            found.setdefault(owner, []).append(path)
    return found


def _longer_names(stem: str) -> list[str]:
    parts = stem.split("-")
    return ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _first_word(name: str) -> str:
    return name.replace("_", "-").partition("-")[0].lower()


def _title(name: str, kind: Kind) -> str:
    """What distinguishes it within its section: `reconstruct-val` is `Val split`."""
    rest = name.partition("-")[2] if _first_word(name) in kind.words else name
    title = label(rest or name)
    return title[:1].upper() + title[1:] + (" split" if rest in SPLITS else "")


def _exhibit(name: str, kind: Kind, paths: list[Path], missing: list[str]) -> Exhibit:
    title = _title(name, kind)
    exhibit = Exhibit(name, title)
    for path in paths:
        try:
            if path.suffix.lower() in PICTURES:
                text = f"{kind.title}: {label(path.stem)}. {kind.lead}".strip()
                caption = _title(path.stem, kind) if path.stem != name else ""
                exhibit.pictures.append(embed_file(path, text, caption))
            elif path.suffix == ".json":
                _add_json(exhibit, json.loads(_read(path)))
            else:
                exhibit.tables.append(_csv(path))
        except (OSError, ValueError, csv.Error) as error:
            missing.append(f"{path.name} cannot be shown: {without_places(str(error))}")
    return exhibit


def _add_json(exhibit: Exhibit, found: Any) -> None:
    if not isinstance(found, Mapping):
        exhibit.facts.append(("values", show(found)))
        return
    settings = found.get("settings")
    if isinstance(settings, Mapping):
        shown = {key: value for key, value in settings.items() if key not in _OF_THE_COMMAND and value is not None}
        exhibit.settings = ", ".join(f"{label(key)} {show(value, key)}" for key, value in shown.items())
    values = {key: value for key, value in found.items() if key != "settings"}
    for name in [name for name, value in values.items() if _is_table(value)]:
        rows = values.pop(name)
        head = tuple(dict.fromkeys(key for row in rows.values() for key in row))
        lines = ([key, *(row.get(part) for part in head)] for key, row in rows.items())
        exhibit.tables.append(table_of(label(name), ("", *head), lines))
    for name, value in flat(values):
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            rows = [dict(flat(row)) for row in value]
            head = tuple(dict.fromkeys(key for row in rows for key in row))
            table = table_of(label(name), head, ([row.get(key) for key in head] for row in rows))
            exhibit.tables.append(_upright(table))
        else:
            parts = [label(part) for part in name.split(" · ")]
            exhibit.facts.append((" · ".join(parts), show(value, name)))


def _is_table(value: Any) -> bool:
    """Whether it is a table of tables that have the same, plain columns, for the most part."""
    if not isinstance(value, Mapping) or len(value) < 3 or not all(isinstance(row, Mapping) for row in value.values()):
        return False
    columns = {key for row in value.values() for key in row}
    plain = not any(isinstance(cell, Mapping | list) for row in value.values() for cell in row.values())
    return plain and 0 < len(columns) * len(value) <= 2 * sum(map(len, value.values()))


def _csv(path: Path) -> Table:
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.reader(file)
        names = next(lines, None)
        if not names:
            raise ValueError("it must have a line of names; got an empty file")
        head = names[:MOST_COLUMNS]
        rows: list[tuple[str, ...]] = []
        left_out = 0
        for line in lines:
            if len(rows) < MOST_ROWS:
                rows.append(tuple(map(_cell, (line + [""] * len(head))[: len(head)])))
            else:
                left_out += 1
    return Table(path.name, tuple(map(label, head)), rows, left_out, len(names) - len(head))


def _cell(text: str) -> str:
    """Text of a table, without digits that nobody reads."""
    if len(text) > 8 and "." in text:
        try:
            return show(float(text))
        except ValueError:
            pass  # Not a number.
    return without_places(text)


def _read(path: Path) -> bytes:
    if path.stat().st_size > _MOST_TABLE_BYTES:
        raise ValueError(f"{path.name} must be smaller than {_MOST_TABLE_BYTES >> 20} MiB; got more")
    return path.read_bytes()


def _is_number(text: str) -> bool:
    return text in ("", UNKNOWN) or text.lstrip("-+")[:1].isdigit()
