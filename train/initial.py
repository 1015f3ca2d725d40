"""The weights that a new run begins with, where they are another run's or another model's."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from train.checkpoint import generations, read_newest, weights_sha256
from train.pretrained import CONFIG_FILE, read_pretrained
from train.runfolder import RunFolder
from train.snapshot import Tensors
from train.state import TrainState

_SHOWN = 4


def begin_with(state: TrainState, source: str) -> dict[str, Any]:
    """Give the model and its average the averaged weights of `source`; returns what a ledger keeps of it.

    `source` is a run's folder, a finished model's folder, or a Hugging Face repository. The optimizer and the position
    stay those of a new run. Raises `UserError` where there is no model, or one whose tensors have other shapes.
    """
    tensors, found = _averaged_weights(source)
    _check_fits(state.model.state_dict(), tensors, source)
    for model in (state.model, state.ema):
        model.load_state_dict(tensors)
    return {"init_from": source, **found, "weights_sha256": weights_sha256(tensors)}


def _averaged_weights(source: str) -> tuple[Tensors, dict[str, Any]]:
    folder = RunFolder(Path(source))
    if not any((path / CONFIG_FILE).exists() for path in (folder.path, folder.final)):
        if generations(folder.checkpoints):
            generation, _ = read_newest(folder.checkpoints)
            assert generation is not None, "there are generations, and read_newest raises where none is whole"
            return generation.parts["ema"], {"init_position": generation.position}
        if folder.path.exists():
            raise UserError(
                f"train.init_from must be a run or a model; got {source}, which holds neither. "
                "Name a folder such as runs/demo or runs/demo/final, or a Hugging Face repository."
            )
    found = read_pretrained(source)
    return found.tensors, {"init_position": found.facts.get("position")}


def _check_fits(ours: Tensors, theirs: Tensors, source: str) -> None:
    lines = []
    for name in sorted({*ours, *theirs}):
        here, there = (
            f"{tuple(tensors[name].shape)}" if name in tensors else "no such tensor" for tensors in (ours, theirs)
        )
        if here != there:
            lines.append(f"{name} is {there} there and {here} here")
    if lines:
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        shown = "; ".join(lines[:_SHOWN]) + more
        raise UserError(
            f"train.init_from must be a model of the same shapes; got {source}, where {shown}. "
            "Use the model section and the image size that it was made with."
        )
