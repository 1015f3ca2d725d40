"""`explore reconstruct`: originals over their reconstructions."""

from pathlib import Path

from rich.console import Console

from explore.commands import Reconstruct
from explore.model import load_trained
from explore.output import Output
from train.grids import reconstruction_blocks, stack
from train.similarity import psnr


def run(command: Reconstruct, console: Console) -> list[Path]:
    """Paint `reconstruct-SPLIT.png`; its json has the PSNR of every image in dB."""
    trained = load_trained(command)
    output = Output(trained.folder, command)
    blocks, originals, answers = reconstruction_blocks(
        trained.model,
        trained.require_shards(),
        command.split,
        trained.device,
        columns=command.columns,
        count=command.count,
    )
    decibels = psnr(originals.float() / 255, answers.float() / 255)
    caption, picture = blocks[0]
    name = f"reconstruct-{command.split}"
    output.picture(name, stack([(f"{caption} (PSNR {decibels.mean():.2f} dB)", picture)]))
    output.numbers(name, {"psnr_db": decibels.tolist(), "mean_psnr_db": float(decibels.mean())})
    return output.written
