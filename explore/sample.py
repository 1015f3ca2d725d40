"""`explore sample`: new faces, as one picture or as files, and the training images that are nearest to them."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from explore.commands import Sample
from explore.encode import decoded, tracked
from explore.figures.sheets import enlarged, enlargement, pillow
from explore.latent.neighbours import QUERIES, SHOWN, Queries, features, find, held_out_queries, measured
from explore.latent.priors import Priors, load_priors
from explore.model import Trained, load_trained
from explore.output import Output
from pipeline.errors import UserError
from pipeline.files import write_json
from train.checkpoint import weights_sha256
from train.evaluate import batch_for
from train.grids import stack, tile

FACTS_FILE = "samples.json"
_OURS = re.compile(r"\d{6,}\.png(\.partial)?")


def run(command: Sample, console: Console) -> list[Path]:
    """Paint `sample-PRIOR.png`, or write numbered files; the json says what they were drawn from.

    Raises `UserError` for a prior that is not there, and for a folder of files that holds others.
    """
    trained = load_trained(command)
    priors = load_priors(trained)
    name = priors.default if command.prior == "best" else command.prior
    priors.mixture(name)
    if priors.note:
        console.print(f"not used: {priors.note}", style="yellow", soft_wrap=True, markup=False)
    output = Output(trained.folder, command)
    about: dict[str, Any] = {"prior": name, "origin": priors.origin(name), "images": command.count}
    written: list[Path] = []
    if command.files is None:
        _paint(command, trained, priors, name, output, console)
    else:
        written.append(_write_files(command.files, command, trained, priors, name, console))
    if command.neighbours:
        about["neighbours"] = _compare(command, trained, priors, name, output, console)
    output.numbers(f"sample-{name}", about)
    return output.written + written


def _caption(command: Sample, priors: Priors, name: str) -> str:
    return f"new faces, from {priors.origin(name)}, temperature {command.temperature:g}"


def _paint(command: Sample, trained: Trained, priors: Priors, name: str, output: Output, console: Console) -> None:
    latents = priors.sample(name, command.count, seed=command.seed, temperature=command.temperature)
    batches = decoded(trained.model, latents, trained.device)
    faces = torch.cat(list(tracked(batches, command.count, "drawing faces", console)))
    columns = min(command.columns, command.count)
    faces = enlarged(faces, enlargement(columns * faces.shape[-1], 2))
    output.picture(f"sample-{name}", stack([(_caption(command, priors, name), tile(faces, columns))]))


def _write_files(folder: Path, command: Sample, trained: Trained, priors: Priors, name: str, console: Console) -> Path:
    """Write `000000.png` and so on; returns the folder. What an earlier attempt wrote is written again."""
    _claim(
        folder,
        {
            "prior": name,
            "origin": priors.origin(name),
            "seed": command.seed,
            "temperature": command.temperature,
            "weights_sha256": weights_sha256(trained.model.state_dict()),
            "prior_sha256": weights_sha256(vars(priors.mixture(name))),
        },
    )
    size, number = batch_for(trained.model.architecture.image_size), 0

    def batches() -> Iterator[Tensor]:
        for first in range(0, command.count, size):
            count = min(size, command.count - first)
            latents = priors.sample(name, count, seed=command.seed, temperature=command.temperature, first=first)
            yield from decoded(trained.model, latents, trained.device)

    for faces in tracked(batches(), command.count, f"writing {folder}", console):
        for face in faces:
            path = folder / f"{number:06d}.png"
            partial = path.with_name(path.name + ".partial")
            pillow(face).save(partial, "PNG")
            os.replace(partial, path)
            number += 1
    return folder


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Make the folder, or go on in one that holds faces of these very settings; `UserError` for any other."""
    remedy = "Name an empty folder, or one that is not there yet."
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--files must be a folder; got the file {folder}. {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(path.name for path in folder.iterdir())
    marker = folder / FACTS_FILE
    if FACTS_FILE in there:
        try:
            known = json.loads(marker.read_bytes())
        except ValueError:
            known = None
        if known != facts:
            raise UserError(f"{folder} must hold faces of the same settings; got faces of others. {remedy}")
        there.remove(FACTS_FILE)
    elif there:
        raise UserError(f"{folder} must hold nothing else; got '{there[0]}'. {remedy}")
    foreign = next((name for name in there if not _OURS.fullmatch(name)), None)
    if foreign:
        raise UserError(f"{folder} must hold nothing else; got '{foreign}'. {remedy}")
    write_json(marker, facts)


def _compare(
    command: Sample, trained: Trained, priors: Priors, name: str, output: Output, console: Console
) -> dict[str, Any]:
    """Paint `sample-PRIOR-neighbours.png` and `-distances.png`; the csv names the neighbours of every face."""
    # Matplotlib is needed for nothing else here.
    from explore.figures.neighbours import distances_figure, neighbours_sheet
    from explore.figures.style import style

    latents = priors.sample(name, QUERIES, seed=command.seed, temperature=command.temperature)
    parts: list[Queries] = []
    shown: list[Tensor] = []
    for faces in tracked(decoded(trained.model, latents, trained.device), QUERIES, "drawing faces", console):
        parts.append(features(trained, faces.float() / 255))
        if len(shown) < SHOWN:
            shown.extend(faces[: SHOWN - len(shown)])
    photos, answers = held_out_queries(trained, QUERIES, command.seed, console)
    queries = Queries.joined([*parts, photos, answers])
    found = find(trained, queries, command.neighbours, named=QUERIES, shown=len(shown), console=console)
    ends = (QUERIES, QUERIES + len(photos), len(queries))
    kinds = {
        kind: slice(begin, end)
        for kind, begin, end in zip(("new", "photos", "reconstructions"), (0, *ends), ends, strict=False)
    }
    numbers = measured(found, kinds)
    stem = f"sample-{name}-neighbours"
    output.picture(stem, neighbours_sheet(torch.stack(shown), found, numbers))
    with style():
        output.figure(f"{stem}-distances", distances_figure(found, kinds, numbers))
    rows = [
        (face, rank + 1, measure, found.known[number].key, distance)
        for face in range(QUERIES)
        for measure, nearest in found.nearest.items()
        for rank, (number, distance) in enumerate(
            zip(nearest.numbers[face].tolist(), nearest.distances[face].tolist(), strict=True)
        )
        if number >= 0
    ]
    output.table(stem, ("face", "rank", "measure", "key", "distance"), rows)
    for measure, values in numbers.items():
        console.print(
            f"nearest training image by {measure}: {values['median_new']:.4f} from a new face, "
            f"{values['median_reconstructions']:.4f} from a held-out face in reconstruction, ratio "
            f"{values['ratio_to_reconstructions']:.2f} (medians)",
            soft_wrap=True,
        )
    return {"faces": QUERIES, "held_out": len(photos), "train": len(found.train), **numbers}
