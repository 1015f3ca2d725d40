"""Portraits painted from back to front, and a folder of them in the layout of Kaggle's CelebA."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from demo import head, looks
from demo.paint import Scene
from demo.traits import ATTRIBUTES, Person, draw_person
from pipeline.errors import UserError
from pipeline.machine import usable_cores

LIST_NAME = "list_attr_celeba.csv"
SMALLEST, LARGEST = 32, 2048
_QUALITY = 92
_CHUNK = 16
# Begins the comment in every photo, so that a person's own 000001.jpg is told from one of ours.
_MARK = b"drawn by leanstream"
_HEADER = ["image_id", *ATTRIBUTES]


def draw_face(index: int, *, size: int = 600, seed: int = 0) -> tuple[Image.Image, dict[str, int]]:
    """Draw face `index`: an RGB image [size, size], and its attributes (CelebA's names, 0 or 1).

    Both are a pure function of (seed, index); the picture is the same at every size but for its detail.

    Raises:
        UserError: the size is not between 32 and 2048.
    """
    person = draw_person(index, seed=seed)
    return paint_portrait(person, size=size), dict(person.attributes)


def paint_portrait(person: Person, *, size: int = 600) -> Image.Image:
    """Paint a person, RGB [size, size]."""
    _check_size(size)
    scene = Scene(person, size)
    hair = looks.HeadHair(scene)
    hair.paint_behind()
    head.paint_neck(scene, looks.paint_clothes(scene))
    looks.paint_necklace(scene)
    head.paint_ears(scene)
    face = head.paint_skin(scene, hair.shade_forehead)
    head.paint_nose(scene)
    head.paint_eyes(scene, face)
    looks.paint_beard(scene)
    head.paint_mouth(scene)
    looks.paint_mustache(scene)
    head.paint_brows(scene)
    looks.paint_glasses(scene, face)
    hair.paint_in_front()
    looks.paint_hat(scene, face)
    looks.paint_earrings(scene)
    return scene.image


def draw_faces(
    folder: Path,
    *,
    count: int,
    size: int = 600,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Draw faces 0 to count - 1 into `folder`: `000001.jpg` and so on, and `list_attr_celeba.csv`.

    The list is written last: a folder that holds it is complete. Photos are the same whatever the count and the number
    of workers. Those of the same size and seed that are there already are not drawn again: the same call goes on after
    an interruption, and has nothing to draw in a complete folder.

    Args:
        folder: made if it does not exist; may hold what an earlier call drew for no greater count, and nothing else.
        count: how many faces there shall be.
        size: pixels on a side, 32 to 2048.
        seed: other seeds give other faces.
        workers: processes to draw with, by default one for each processor core.
        progress: called with the number of faces in the folder so far, in this process.

    Raises:
        UserError: a number is out of range, or the folder holds a file that was not drawn here.
    """
    if count < 1:
        raise UserError(f"the count of faces must be at least 1; got {count}. Choose 2000 for a first training run.")
    if workers is not None and workers < 1:
        raise UserError(f"the number of workers must be at least 1; got {workers}. Leave it out for one per core.")
    _check_size(size)
    names = [f"{number:0{max(6, len(str(count)))}d}.jpg" for number in range(1, count + 1)]
    there = _drawn_before(folder, names, size, seed)
    left = [(index, name) for index, name in enumerate(names) if name not in there]
    folder.mkdir(parents=True, exist_ok=True)
    if left:
        (folder / LIST_NAME).unlink(missing_ok=True)
    report, drawn = progress or (lambda drawn: None), len(there)
    report(drawn)
    jobs = [left[first : first + _CHUNK] for first in range(0, len(left), _CHUNK)]
    draw = partial(_draw_chunk, folder, size, seed)
    workers = min(workers or usable_cores(), len(jobs))
    if workers <= 1:
        for job in jobs:
            drawn += draw(job)
            report(drawn)
    else:
        # Spawned, not forked: the caller may have threads.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            try:
                for future in as_completed([pool.submit(draw, job) for job in jobs]):
                    drawn += future.result()
                    report(drawn)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    _write_list(folder, names, seed)


def _check_size(size: int) -> None:
    if not SMALLEST <= size <= LARGEST:
        raise UserError(
            f"the size of a face must be between {SMALLEST} and {LARGEST} pixels; got {size}. "
            "Choose 600, or leave it out."
        )


def _mark(index: int, size: int, seed: int) -> bytes:
    return b"%s: face %d of seed %d, %d px;" % (_MARK, index, seed, size)


def _draw_chunk(folder: Path, size: int, seed: int, faces: list[tuple[int, str]]) -> int:
    for index, name in faces:
        image, _ = draw_face(index, size=size, seed=seed)
        part = folder / _part_name(name)
        image.save(part, "JPEG", quality=_QUALITY, comment=_mark(index, size, seed))
        os.replace(part, folder / name)
    return len(faces)


def _write_list(folder: Path, names: list[str], seed: int) -> None:
    rows = [_HEADER]
    for index, name in enumerate(names):
        attributes = draw_person(index, seed=seed).attributes
        rows.append([name, *("1" if attributes[column] else "-1" for column in ATTRIBUTES)])
    part = folder / _part_name(LIST_NAME)
    part.write_bytes("".join(",".join(row) + "\n" for row in rows).encode())
    os.replace(part, folder / LIST_NAME)


def _part_name(name: str) -> str:
    return f".{name}.leanstream-part"


def _drawn_before(folder: Path, names: list[str], size: int, seed: int) -> set[str]:
    """The photos that need not be drawn; refuses a folder with anything in it that was not drawn here."""
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise UserError(f"the place for drawn faces must be a folder; got the file {folder}. Choose another name.")
    numbers = {name: index for index, name in enumerate(names)}
    parts = {_part_name(name) for name in (*names, LIST_NAME)}
    drawn, header = set(), ",".join(_HEADER).encode()
    for entry in sorted(folder.iterdir()):
        content = entry.read_bytes() if entry.is_file() and not entry.is_symlink() else b""
        if entry.name in numbers and _MARK in content[:512]:
            # A photo may have been cut short by a power failure.
            if _mark(numbers[entry.name], size, seed) in content[:512] and content.endswith(b"\xff\xd9"):
                drawn.add(entry.name)
        elif entry.name not in parts and (entry.name != LIST_NAME or not content.startswith(header)):
            way_out = "Choose a new folder, so that nothing of yours is overwritten."
            if (entry / LIST_NAME).is_file():
                way_out = f"Drawn faces may be in {entry} already: name that folder, or a new one."
            raise UserError(
                f"the folder for {len(names)} drawn faces must be empty or hold nothing but such faces; "
                f"got {entry.name} in {folder}. {way_out}"
            )
    return drawn
