"""`explore attributes`: what the latent space knows of every attribute, and faces moved along its direction.

attributes.csv, .json             how well latents tell each attribute on held-out faces
attributes-auc.png                the same to look at
attributes-cosines.png, .csv      how alike the directions of different attributes are
attributes-FACE.png, .csv         a face moved from -4 to 4 units along every direction
attributes-applied.png, .json     with --apply alone: faces, their reconstructions, and those changed
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from explore.commands import Attributes
from explore.encode import decoded
from explore.faces import Faces, drawn_faces, load_faces
from explore.figures.strips import strips
from explore.latent.directions import Directions, held_out_split, load_directions, unknown_attribute
from explore.model import Trained, load_trained
from explore.output import Output
from pipeline.errors import UserError
from train.evaluate import batch_for
from train.similarity import psnr

AMOUNTS = tuple(range(-4, 5))
"""Units of a strip, from column to column."""
MOST_AMOUNT = 100.0
_FACES = 3
_MOST_FACES = 64


def run(command: Attributes, console: Console) -> list[Path]:
    """Write the files above; raises `UserError` for attributes and faces that are none."""
    amounts = None if command.apply is None else parse_amounts(command.apply)
    only = None if command.only is None else [name.strip() for name in command.only.split(",")]
    trained = load_trained(command, prior_images=1)  # Nothing is drawn from the prior here.
    # What can be wrong is found out before the images are streamed.
    if trained.shards is not None:
        known = trained.require_attributes()
        for name in (*(only or ()), *(amounts or ())):
            if name not in known:
                raise unknown_attribute(name, known)
    faces = _faces(trained, command)
    directions = load_directions(trained, console, command.images)
    chosen = _chosen(directions, directions.names if only is None else only)
    for name in amounts or {}:
        directions.number(name)
    output = Output(trained.folder, command)
    means = _means(trained, faces)
    if amounts is not None:
        _apply(trained, output, directions, faces, means, amounts, plain=command.directions == "plain")
        return output.written
    _write_table(output, directions, chosen, console)
    _draw(output, directions, chosen)
    for number, name in enumerate(_file_names(faces)):
        _strip(trained, output, directions, chosen, faces, means, number, name, plain=command.directions == "plain")
    return output.written


def parse_amounts(text: str) -> dict[str, float]:
    """`Smiling=2,Eyeglasses=-1` by name; `UserError` for anything else."""
    amounts: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            amount = float(value)
        except ValueError:
            amount = math.nan
        if not name or not equals or not abs(amount) <= MOST_AMOUNT:
            raise UserError(
                f"--apply must be attributes and units from {-MOST_AMOUNT:g} to {MOST_AMOUNT:g}; got '{part}'. "
                "Write it as in --apply Smiling=2,Eyeglasses=-1."
            )
        if name in amounts:
            raise UserError(f"--apply must name an attribute once; got '{name}' twice. Add its units up.")
        amounts[name] = amount
    return amounts


def _chosen(directions: Directions, wanted: Sequence[str]) -> list[int]:
    """Numbers of the attributes to show, those first that latents tell best."""
    numbers = [directions.number(name) for name in dict.fromkeys(wanted)]
    return sorted(numbers, key=lambda number: (-_known(directions.auc[number]), directions.names[number]))


def _known(auc: float) -> float:
    return -math.inf if math.isnan(auc) else auc


def _faces(trained: Trained, command: Attributes) -> Faces:
    if command.faces:
        split = "val" if trained.shards is None else held_out_split(trained)
        faces = load_faces(trained, command.faces, split)
        if len(faces) > _MOST_FACES:
            raise UserError(f"at most {_MOST_FACES} faces must be named; got {len(faces)}. Name fewer.")
        return faces
    split = held_out_split(trained)
    return drawn_faces(trained, split, min(_FACES, trained.count(split)), command.seed)


@torch.inference_mode()
def _means(trained: Trained, faces: Faces) -> Tensor:
    parts = torch.split(faces.images, batch_for(trained.model.architecture.image_size))
    return torch.cat([trained.model.encode(part.to(trained.device).float() / 255)[0].cpu() for part in parts])


def _decoded(trained: Trained, latents: Tensor) -> Tensor:
    return torch.cat(list(decoded(trained.model, latents, trained.device)))


def _apply(
    trained: Trained,
    output: Output,
    directions: Directions,
    faces: Faces,
    means: Tensor,
    amounts: dict[str, float],
    *,
    plain: bool,
) -> None:
    reconstructions = _decoded(trained, means)
    changed = _decoded(trained, directions.moved(means, amounts, plain=plain))
    words = ", ".join(f"{name} {amount:+g}" for name, amount in amounts.items())
    rows = list(zip(faces.names, torch.stack([faces.images, reconstructions, changed], 1), strict=True))
    output.picture("attributes-applied", strips(words, ("original", "reconstruction", "changed"), rows))
    decibels = psnr(faces.images.float() / 255, reconstructions.float() / 255).tolist()
    moved = _rms(reconstructions[:, None], changed[:, None])[:, 0].tolist()
    output.numbers(
        "attributes-applied",
        {
            "amounts": amounts,
            "faces": [
                {"name": name, **({"key": key} if key else {}), "reconstruction_psnr_db": db, "change_rms": change}
                for name, key, db, change in zip(faces.names, faces.keys, decibels, moved, strict=True)
            ],
        },
    )


def _strip(
    trained: Trained,
    output: Output,
    directions: Directions,
    chosen: list[int],
    faces: Faces,
    means: Tensor,
    number: int,
    file_name: str,
    *,
    plain: bool,
) -> None:
    """A row an attribute; the csv has how far each picture is from the one in the middle."""
    rows, changes = [], []
    for place in chosen:
        name = directions.names[place]
        latents = torch.cat([directions.moved(means[number : number + 1], {name: by}, plain=plain) for by in AMOUNTS])
        images = _decoded(trained, latents)
        rows.append((name, images))
        changes.append([name, *(f"{change:.2f}" for change in _rms(images[None], images[None, 4:5])[0].tolist())])
    face = faces.names[number]
    heads = [f"{amount:+d}" if amount else "0" for amount in AMOUNTS]
    kind = "plain" if plain else "adjusted"
    key = f" ({faces.keys[number]})" if faces.keys[number] else ""
    title = f"{face}{key}, moved along {kind} directions by so many units"
    output.picture(file_name, strips(title, heads, rows))
    output.table(file_name, ("attribute", *(f"rms_{head}" for head in heads)), changes)


def _rms(images: Tensor, others: Tensor) -> Tensor:
    """Root mean squared difference [A, B] of images uint8 [A, B, 3, H, W], in steps of 256."""
    return (images.float() - others.float()).square().flatten(2).mean(2).sqrt()


def _file_names(faces: Faces) -> list[str]:
    """Of each face: `val:12` becomes attributes-face-val-12, a photo loses its extension, a namesake gets a number."""
    names: list[str] = []
    for face, key in zip(faces.names, faces.keys, strict=True):
        stem = face if key else Path(face).stem
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem)
        name = f"attributes-face-{plain}"
        names.append(f"{name}-{len(names) + 1}" if name in names else name)
    return names


def _write_table(output: Output, directions: Directions, chosen: list[int], console: Console) -> None:
    where = f"{directions.held_out:,} held-out faces ({directions.held_out_from})"
    table = Table("attribute", "ROC AUC", "adjusted", "plain", "share", title=f"How well latents tell it, on {where}")
    found = {directions.names[number]: _figures(directions, number) for number in chosen}
    for name, figures in found.items():
        one, error, adjusted, plain = (_shown(figures[key]) for key in _SCORES)
        table.add_row(name, f"{one} ± {error}", adjusted, plain, f"{directions.shares[name]:.1%}")
    console.print(table)
    columns = next(iter(found.values()))
    output.table("attributes", ("attribute", *columns), [(name, *_rounded(row)) for name, row in found.items()])
    constant = [name for name in directions.shares if name not in directions.names]
    output.numbers(
        "attributes",
        {
            "training_images": directions.images,
            "held_out_images": directions.held_out,
            "held_out_from": directions.held_out_from,
            "unit": "from faces without the attribute to faces with it",
            "without_direction": {name: directions.shares[name] for name in constant},
            "mean_absolute_cosine": {
                "adjusted": _mean_cosine(directions.vectors[chosen]),
                "plain": _mean_cosine(directions.plain[chosen]),
            },
            "attributes": found,
        },
    )
    if constant:
        console.print(
            f"without a direction, since all {directions.images:,} images are the same: {', '.join(constant)}",
            style="yellow",
            soft_wrap=True,
            markup=False,
        )


_SCORES = ("auc", "auc_standard_error", "auc_adjusted", "auc_plain")


def _figures(directions: Directions, number: int) -> dict[str, float | None]:
    scores = (directions.auc, directions.auc_errors, directions.auc_adjusted, directions.auc_plain)
    values = [each[number] for each in scores]
    return {
        **{key: None if math.isnan(value) else value for key, value in zip(_SCORES, values, strict=True)},
        "share": directions.shares[directions.names[number]],
        "held_out_with": directions.held_out_with[number],
        "length_adjusted": float(directions.vectors[number].norm()),
        "length_plain": float(directions.plain[number].norm()),
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rounded(row: Mapping[str, float | None]) -> list[str]:
    return ["" if value is None else f"{value:.4f}".rstrip("0").rstrip(".") for value in row.values()]


def _mean_cosine(vectors: Tensor) -> float | None:
    cosines = cosines_of(vectors)
    count = len(cosines)
    return None if count < 2 else float((cosines.abs().sum() - count) / (count * (count - 1)))


def cosines_of(vectors: Tensor) -> Tensor:
    """Cosine similarities [A, A] of directions [A, Z]."""
    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    return units @ units.T


def _draw(output: Output, directions: Directions, chosen: list[int]) -> None:
    from explore.figures.attributes import auc_figure, cosine_figure
    from explore.figures.style import style

    names = [directions.names[number] for number in chosen]
    matrices = {"adjusted": cosines_of(directions.vectors[chosen]), "plain": cosines_of(directions.plain[chosen])}
    with style():
        output.figure("attributes-auc", auc_figure(directions, chosen))
        if len(chosen) > 1:
            output.figure("attributes-cosines", cosine_figure(names, matrices))
    if len(chosen) > 1:
        rows = [
            (kind, name, *(f"{value:.4f}" for value in row))
            for kind, matrix in matrices.items()
            for name, row in zip(names, matrix.tolist(), strict=True)
        ]
        output.table("attributes-cosines", ("directions", "attribute", *names), rows)
