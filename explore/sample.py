"""`explore sample`: new faces."""

from pathlib import Path

from rich.console import Console

from explore.commands import Sample
from explore.model import load_trained
from explore.output import Output
from train.evaluate import Gaussian
from train.grids import stack, tile


def run(command: Sample, console: Console) -> list[Path]:
    """Paint `sample-PRIOR.png`; its json says what it was drawn from."""
    trained = load_trained(command)
    output = Output(trained.folder, command)
    gaussian = trained.fitted if command.prior == "fitted" else Gaussian.standard(trained.model.latent)
    faces = trained.model.sample(command.count, seed=command.seed, temperature=command.temperature, prior=gaussian)
    origin = "the aggregate posterior's mean and covariance" if command.prior == "fitted" else "the prior N(0, I)"
    caption = f"new faces, from {origin}, temperature {command.temperature:g}"
    name = f"sample-{command.prior}"
    output.picture(name, stack([(caption, tile(faces, command.columns))]))
    output.numbers(name, {"origin": origin})
    return output.written
