"""What shows how a run comes on: a grid of always the same images, figures on held-out ones, the curves."""

from dataclasses import asdict

from pipeline.files import atomic_writer
from train.curves import draw_curves
from train.evaluate import Gaussian, aggregate_posterior, score
from train.grids import training_grid
from train.runfolder import RunFolder
from train.session import Session


def validate(session: Session) -> str:
    """At an epoch's end: paint, measure, draw; returns the figures in words, none without a validation split."""
    model, device = session.state.ema, session.accelerator.device
    limit = session.config.train.prior_images
    paint(session, aggregate_posterior(model, session.shards, "train", limit, device))
    scores = session.scores = score_held_out(session)
    session.record({"position": session.state.position, "epoch": session.epoch, "scores": scores})
    draw_curves_of(session.folder)
    return ", ".join(f"{name} {found['psnr_db']:.2f} dB at {found['rate_nats']:.1f} nats" for name, found in
                     scores.items())  # fmt: skip


def score_held_out(session: Session) -> dict[str, dict[str, float]]:
    """By split: the averaged weights' figures on the validation split, if there is one."""
    if not len(session.shards.splits.get("val", ())):
        return {}
    model, device = session.state.ema, session.accelerator.device
    found = score(model, session.shards, "val", device, session.likelihood)
    return {"val": asdict(found)}


def paint(session: Session, prior: Gaussian) -> None:
    """Save a grid of the averaged weights, named by the position; its new faces are drawn from `prior`."""
    session.folder.grids.mkdir(exist_ok=True)
    model, device, config = session.state.ema, session.accelerator.device, session.config
    grid = training_grid(model, session.shards, session.grid_split, prior, device, config.run.seed)
    with atomic_writer(session.folder.grids / f"{session.state.position:012d}.png") as file:
        grid.save(file, "PNG")


def draw_curves_of(folder: RunFolder) -> None:
    """Draw `curves.png` of a run anew, as far as it is."""
    picture = draw_curves(folder.read_metrics(), folder.path.resolve().name)
    if picture is not None:
        with atomic_writer(folder.curves_file) as file:
            picture.save(file, "PNG")
