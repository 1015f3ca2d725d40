"""`explore report`: everything about a run in one HTML file that needs nothing else.

run folder, shard set --evidence.py--> what is known --+
explore folder --results.py, embed.py--> sections -----+--> html/templates/report.html --> explore/report.html
metrics --charts.py--> line charts --------------------+
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from rich.console import Console

from explore.commands import Report
from explore.html import charts
from explore.html.embed import Picture, embed, embed_file
from explore.html.evidence import Evidence, gather
from explore.html.reproduce import steps_of
from explore.html.results import KINDS, Table, read_sections, table_of
from explore.html.wording import flat, label, show, without_places
from explore.output import Output
from pipeline import Dataset, StreamingLoader
from pipeline.errors import LeanstreamError
from shard_tool.care.inspect import labels_of_all

FILE = "report.html"
_FACES = 48
_GRIDS = 6
_GRID_WIDTH = 1200


@dataclass(frozen=True)
class Card:
    """One figure in large letters."""

    value: str
    name: str
    note: str = ""


def run(command: Report, console: Console) -> list[Path]:
    """Write `report.html`; what is missing is named in it, and with the command that makes it."""
    evidence = gather(command)
    folder = command.out or evidence.home / "explore"
    output = Output(folder, command)
    page = render(evidence, folder if _has_results(folder) else evidence.home / "explore")
    output.file(FILE, page.encode())
    for line in evidence.missing:
        console.print(line, style="yellow", soft_wrap=True, markup=False)
    return output.written


def render(evidence: Evidence, results: Path) -> str:
    """The page; the same for the same files, seen from the same folder."""
    environment = Environment(
        loader=PackageLoader("explore.html", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    missing = evidence.missing
    sections = read_sections(results, missing)
    there = {section.kind for section in sections}
    undone = [kind for kind in KINDS if kind not in there]
    grids = list(_grids(evidence))
    return environment.get_template(FILE).render(
        name=evidence.name,
        summary=_sentence(evidence),
        cards=_cards(evidence),
        scores=_scores(evidence),
        data=_data(evidence),
        faces=_faces(evidence),
        attributes=_attributes(evidence),
        charts=charts.charts_of(evidence.metrics),
        frame=charts.FRAME,
        size=(charts.WIDTH, charts.HEIGHT),
        grids=grids,
        sections=sections,
        costs=_costs(evidence),
        ledger=_ledger(evidence),
        settings=_settings(evidence),
        steps=steps_of(evidence, [section.kind.command for section in sections if section.kind.command]),
        versions=_versions(evidence),
        missing=missing,
        undone=undone,
    )


def _has_results(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix in (".png", ".json", ".csv") for path in folder.iterdir())


def _sentence(evidence: Evidence) -> str:
    model = evidence.model.get("architecture") or evidence.config.get("model") or {}
    size = model.get("image_size") or (evidence.shards.image_size if evidence.shards is not None else None)
    kind = f"A `{model['kind']}` face VAE" if "kind" in model else "A face VAE"
    what = f"{kind} for images of {size} x {size} pixels" if size else kind
    parameters = evidence.training.get("parameters")
    what += f", {parameters:,} parameters" if isinstance(parameters, int) else ""
    position, samples = evidence.position, evidence.epoch_samples
    if position is None:
        return f"{what}. It has not been trained yet."
    epochs = f", {position / samples:.1f} epochs" if samples else ""
    if evidence.model or evidence.summary.get("finished"):
        state = "Trained on"
    elif evidence.summary:
        state = "Stopped, to go on later, after"
    else:
        state = "In training, or cut off, after"
    return f"{what.replace('`', '')}. {state} {position:,} images{epochs}."


def _cards(evidence: Evidence) -> list[Card]:
    split, scores = next(iter(evidence.scores.items()), ("", {}))
    summary, cards = evidence.summary, []
    latent = (evidence.model.get("architecture") or evidence.config.get("model") or {}).get("latent")
    for key, name, form in (
        ("psnr_db", "PSNR", "{:.2f} dB"),
        ("ssim", "SSIM", "{:.3f}"),
        ("rate_nats", "rate", "{:.0f} nats"),
        ("bits_per_dimension", "bits a dimension", "{:.2f}"),
        ("active_units", "active dimensions", "{:.0f}"),
    ):
        value = scores.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            note = f"of {latent}" if key == "active_units" and latent else f"{split} split"
            cards.append(Card(form.format(value), name, note))
    if isinstance(summary.get("total_wall_s"), int | float):
        cards.append(Card(show(summary["total_wall_s"], "wall_s"), "training time", "all sessions"))
    if isinstance(summary.get("peak_pss_bytes"), int) and summary["peak_pss_bytes"]:
        planned = summary.get("planned_bytes")
        note = f"planned {show(planned, 'planned_bytes')}" if planned else ""
        cards.append(Card(show(summary["peak_pss_bytes"], "peak_bytes"), "peak memory", note))
    return cards


def _scores(evidence: Evidence) -> Table | None:
    splits = evidence.scores
    names = list(dict.fromkeys(name for values in splits.values() for name in values))
    if not names:
        return None
    rows = [(label(name), *(show(values.get(name), name) for values in splits.values())) for name in names]
    return table_of("Figures of the averaged weights", ("figure", *splits), rows)


def _data(evidence: Evidence) -> list[tuple[str, str]]:
    if evidence.shards is None:
        data = evidence.training.get("data") or {}
        return [(label(name), show(value, name)) for name, value in data.items() if value != {}]
    shards = evidence.shards.once()
    rejected = sum(one.rejected for one in shards.sets)
    splits = ", ".join(f"{split.total:,} {name}" for name, split in shards.splits.items())
    count = sum(len(split) for split in shards.splits.values())
    size = sum(int(split.bytes.sum()) for split in shards.splits.values())
    return [
        ("shard set" if len(shards.sets) == 1 else "shard sets", ", ".join(_names(evidence.shards))),
        ("images", splits),
        *([("left out", f"{rejected:,} inputs that gave no image")] if rejected else []),
        ("size, encoding", f"{shards.image_size} x {shards.image_size} px, {shards.encoding}"),
        ("shards", f"{count:,}, {show(size, 'bytes')}"),
        ("labels", _labels(shards)),
        ("fingerprint", evidence.shards.fingerprint),
    ]


def _names(shards: Dataset) -> Iterator[str]:
    for one, count in zip(shards.sets, shards.repeats, strict=True):
        yield without_places(one.name) + (f" ({count:,} times an epoch)" if count > 1 else "")


def _labels(shards: Dataset) -> str:
    if shards.attributes or shards.classes:
        return f"{len(shards.attributes)} attributes" if shards.attributes else f"{len(shards.classes)} classes"
    return "not the same in all sets" if any(one.attributes or one.classes for one in shards.sets) else "none"


def _faces(evidence: Evidence) -> list[Picture]:
    """The first training images of the sets' order, each with its key."""
    shards = evidence.shards.once() if evidence.shards is not None else None
    if shards is None or "train" not in shards.splits:
        return []
    count = min(_FACES, shards.splits["train"].total)
    try:
        with StreamingLoader(shards, split="train", batch_size=count, window=1, lanes=1, prefetch=1) as loader:
            batch = next(loader)
            return [
                embed(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), key, most_width=128)
                for image, key in zip(batch.images, batch.keys, strict=True)
            ]
    except (LeanstreamError, OSError) as error:
        evidence.missing.append(f"No pictures of the data: {without_places(str(error))}")
        return []


def _attributes(evidence: Evidence) -> Table | None:
    """How many images of each split have each label."""
    shards = evidence.shards.once() if evidence.shards is not None else None
    try:
        counts = labels_of_all(shards.sets) if shards is not None else None
    except (KeyError, TypeError, ValueError):  # A set that was edited by hand is still a set.
        counts = None
    if shards is None or counts is None:
        return None
    rows = [
        (name, *(f"{counts[split][name] / content.total:.1%}" for split, content in shards.splits.items()))
        for name in shards.attributes or shards.classes
    ]
    return table_of("How many images have each attribute", ("attribute", *shards.splits), rows)


def _grids(evidence: Evidence) -> Iterator[Picture]:
    """A few grids of the whole course, the last one among them."""
    grids, samples = evidence.grids, evidence.epoch_samples
    count = min(_GRIDS, len(grids))
    chosen = [grids[round(number * (len(grids) - 1) / max(count - 1, 1))] for number in range(count)]
    for position, path in chosen[::-1]:
        when = "" if position is None else f"{position:,} images"
        if position is not None and samples:
            when = f"epoch {position / samples:.1f}, {when}"
        text = f"Originals over reconstructions, and new faces{f', after {when}' if when else ''}"
        try:
            yield embed_file(path, text, when or "the finished model", _GRID_WIDTH)
        except (OSError, ValueError) as error:
            evidence.missing.append(f"{path.name} cannot be shown: {without_places(str(error))}")


def _costs(evidence: Evidence) -> list[tuple[str, str]]:
    names = {
        "planned_bytes": "memory planned",
        "peak_pss_bytes": "memory at its peak, all processes",
        "peak_gpu_bytes": "GPU memory at its peak",
        "images_per_s": "images a second",
        "data_wait_share": "time spent waiting for data",
        "wall_s": "time of the last session",
        "total_wall_s": "time of all sessions",
        "updates": "updates",
        "weights_sha256": "sha256 of the weights",
    }
    found = [
        (text, f"{evidence.summary[name]:,.0f}" if name == "images_per_s" else show(evidence.summary[name], name))
        for name, text in names.items()
        if evidence.summary.get(name)
    ]
    events = [str(record.get("event", "")) for record in evidence.ledger]
    counts = {event: len(list(group)) for event, group in itertools.groupby(sorted(events))}
    found += [("events", ", ".join(f"{count} {event}" for event, count in counts.items()))] if counts else []
    pauses = [record["pause_ms"] for record in evidence.ledger if isinstance(record.get("pause_ms"), int | float)]
    if pauses:
        found.append(("pause of a save", f"{statistics.median(pauses):.1f} ms, at most {max(pauses):.1f} ms"))
    return found


def _ledger(evidence: Evidence) -> Table | None:
    if not evidence.ledger:
        return None
    rows = []
    for record in evidence.ledger:
        rest = {key: value for key, value in record.items() if key not in ("event", "time", "position")}
        time = str(record.get("time", "")).replace("T", " ").partition("+")[0]
        what = ", ".join(f"{label(key)} {show(value, key)}" for key, value in flat(rest))
        rows.append((time, record.get("event", ""), record.get("position"), what))
    return table_of("Ledger", ("time", "event", "image", "details"), rows)


def _settings(evidence: Evidence) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (section, [(name.replace("_", " "), show(value, name)) for name, value in values.items()])
        for section, values in evidence.config.items()
    ]


def _versions(evidence: Evidence) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for record in evidence.ledger:
        if record.get("torch"):
            found["torch"] = str(record["torch"])
    for name in ("torch", "device", "processes", "precision"):
        if evidence.training.get(name):
            found[name] = str(evidence.training[name])
    if evidence.shards is not None and evidence.shards.parts:
        versions = evidence.shards.parts[-1].get("versions")
        if isinstance(versions, dict):
            found |= {f"{name} (shard set)": str(version) for name, version in versions.items()}
    return [(without_places(name), without_places(value)) for name, value in found.items()]
