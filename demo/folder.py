"""A folder of portraits with their list of attributes, in the layout of Kaggle's CelebA."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from demo.portrait import check_size, draw_face
from demo.traits import ATTRIBUTES, draw_person
from pipeline.errors import UserError
from pipeline.machine import usable_cores

LIST_NAME = "list_attr_celeba.csv"
_QUALITY = 92
_CHUNK = 16
# Kept in every photo, so that a person's own 000001.jpg is told from one of ours.
_MARK = b"drawn by leanstream"
_HEADER = ["image_id", *ATTRIBUTES]


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

    The list is written last: a folder that holds it is complete. Photos are the same whatever the count, and every file
    the same with any number of workers; the same call after an interruption gives the same folder.

    Args:
        folder: made if it does not exist; may hold what an earlier call of the same count drew, and nothing else.
        count: how many faces to draw.
        size: pixels on a side, 32 to 2048.
        seed: other seeds give other faces.
        workers: processes to draw with, by default one for each processor core.
        progress: called with the number of faces drawn so far, in this process.

    Raises:
        UserError: a number is out of range, or the folder holds a file that was not drawn here.
    """
    if count < 1:
        raise UserError(f"the count of faces must be at least 1; got {count}. Choose 2000 for a first training run.")
    if workers is not None and workers < 1:
        raise UserError(f"the number of workers must be at least 1; got {workers}. Leave it out for one per core.")
    check_size(size)
    names = [f"{number:0{max(6, len(str(count)))}d}.jpg" for number in range(1, count + 1)]
    _refuse_files_of_others(folder, names)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LIST_NAME).unlink(missing_ok=True)

    chunks = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
    jobs = [(chunk, names[chunk.start : chunk.stop]) for chunk in chunks]
    workers = min(workers or usable_cores(), len(jobs))
    draw = partial(_draw_chunk, folder, size, seed)
    report = progress or (lambda drawn: None)
    drawn = 0
    if workers == 1:
        for job in jobs:
            drawn += draw(*job)
            report(drawn)
    else:
        # Spawned, not forked: the caller may have threads.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            try:
                for future in as_completed([pool.submit(draw, *job) for job in jobs]):
                    drawn += future.result()
                    report(drawn)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    _write_list(folder, names, seed)


def _draw_chunk(folder: Path, size: int, seed: int, indices: range, names: list[str]) -> int:
    for index, name in zip(indices, names, strict=True):
        image, _ = draw_face(index, size=size, seed=seed)
        part = folder / _part_name(name)
        image.save(part, "JPEG", quality=_QUALITY, comment=_MARK)
        os.replace(part, folder / name)
    return len(names)


def _write_list(folder: Path, names: list[str], seed: int) -> None:
    part = folder / _part_name(LIST_NAME)
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        for index, name in enumerate(names):
            attributes = draw_person(index, seed=seed).attributes
            writer.writerow([name, *(1 if attributes[column] else -1 for column in ATTRIBUTES)])
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / LIST_NAME)


def _part_name(name: str) -> str:
    return f".{name}.leanstream-part"


def _refuse_files_of_others(folder: Path, names: list[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"the place for drawn faces must be a folder; got the file {folder}. Choose another name.")
    photos = set(names)
    parts = {_part_name(name) for name in (*names, LIST_NAME)}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        ours = entry.is_file(follow_symlinks=False) and (
            entry.name in parts
            or (entry.name in photos and _MARK in _start_of(entry.path))
            or (entry.name == LIST_NAME and _start_of(entry.path).startswith(",".join(_HEADER).encode()))
        )
        if not ours:
            raise UserError(
                f"the folder for {len(names)} drawn faces must be empty or hold nothing but such faces; "
                f"got {entry.name} in {folder}. Choose a new folder, so that nothing of yours is overwritten."
            )


def _start_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)
