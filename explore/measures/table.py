"""How `explore score` shows what it found: a table, rows for a spreadsheet, and where every figure comes from."""

import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from explore.commands import Score
from explore.measures.manifold import DENSITY_K, MANIFOLD_K
from explore.model import Trained
from train.similarity import scales

LIBRARIES = ("leanstream", "torch", "torchmetrics", "numpy", "pillow", "simplejpeg")
NO_NETWORK = (
    "FID and KID need a network that is not part of this program: save NVIDIA's inception-2015-12-05.pt "
    "(TorchScript; StyleGAN2-ADA, StyleGAN3 and EDM compute FID by it) and give it with --features PATH. "
    "Nothing was downloaded."
)
COLUMNS = ("of", "figure", "mean", "deviation", "draws", "images", "reference", "image_px", "crop", "features")
_CSV_FEATURES = ("precision", "recall", "density", "coverage")
_UNITS = {"psnr_db": ("PSNR", " dB"), "rate_nats": ("rate", " nats"), "distortion_nats": ("distortion", " nats")}
_TITLES = {"real": "floor", "reconstructions": "reconstr.", "standard": "N(0, I)", "swd": "SWD x 1000"}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation of a figure's draws; no deviation of a single one."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "draws": len(values),
    }


def origin_of(trained: Trained, command: Score, count: int) -> dict[str, Any]:
    """What the figures are of, and what they were computed with."""
    shards = trained.require_shards()
    builds = [{"settings": part.get("settings", {}), "versions": part.get("versions", {})} for part in shards.parts]
    crops = sorted({str(build["settings"].get("crop", "unknown")) for build in builds}) or ["unknown"]
    return {
        "data": {
            "name": shards.name,
            "fingerprint": shards.fingerprint,
            "split": command.split,
            "images": count,
            "image_px": shards.image_size,
            "crop": ", ".join(crops),
            "resize": _resize(builds),
            "builds": builds,
        },
        "model": {name: trained.facts.get(name) for name in ("position", "objective", "sigma")}
        | trained.model.describe(),
        "how": {
            "swd": "sliced Wasserstein distance x 1000 over 7x7 patches of Laplacian pyramids, 128 an image and level, "
            "512 directions; mean over levels",
            "ms_ssim": f"{scales(shards.image_size)} scales, 11x11 window, the paper's weights divided by their sum",
            "precision, recall": f"k = {MANIFOLD_K}",
            "density, coverage": f"k = {DENSITY_K}",
            "sharpness": "mean squared Laplacian of the brightness over the reference's",
            "deviation": "sample standard deviation over draws: seeds, or for real images other images",
        },
        "libraries": {**_versions(), "python": platform.python_version(), "device": str(trained.device)},
    }


def print_report(found: Mapping[str, Any], console: Console) -> None:
    """Two tables, and below them what every figure is of."""
    data, features, libraries = found["data"], found["features"], found["libraries"]
    truth = Table("reconstruction", "mean", "deviation", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, figure in found["reconstruction"].items():
        title, unit = _UNITS.get(name, (name.replace("_", " ").replace("ms ssim", "MS-SSIM"), ""))
        title = title.upper() if name in ("ssim", "mse") else title
        truth.add_row(title, f"{_short(figure['mean'])}{unit}", _short(figure["deviation"]))
    console.print(truth)
    sets = found["sets"]
    table = Table("pictures", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in sets:
        table.add_column(_TITLES.get(name, name), justify="right")
    for figure in next(iter(sets.values()))["figures"]:
        values = [scored["figures"][figure] for scored in sets.values()]
        title = f"  {figure[4:]}" if figure.startswith("swd_") else _TITLES.get(figure, figure)
        table.add_row(title, *(_cell(value) for value in values))
    console.print(table)
    say(
        console,
        f"{data['images']:,} images of {data['name']} {data['split']}, {data['image_px']} px, crop "
        f"{data['crop']}, {data['resize']}; floor: {sets['real']['images']:,} other real images a draw; "
        "reconstructions are set against their own originals, and may lie below the floor.",
    )
    say(
        console,
        f"precision, recall (k {MANIFOLD_K}), density, coverage (k {DENSITY_K}) on {features['name']}"
        + (f": {features['what']}." if "what" in features else f", sha256 {features['sha256'][:16]}."),
    )
    say(console, ", ".join(f"{name} {value}" for name, value in libraries.items()))
    for line in found["missing"]:
        console.print(line, style="yellow", soft_wrap=True, markup=False)


def say(console: Console, text: str) -> None:
    """A line that a pipe gets whole."""
    console.print(text, soft_wrap=True, markup=False)


def rows_of(found: Mapping[str, Any]) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
    """Column names, and a row for each figure, each with what it is of."""
    return COLUMNS, _rows(found)


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    data, features = found["data"], found["features"]["name"]
    reference = f"{data['name']} {data['split']}"
    parts = [("reconstruction", data["images"], found["reconstruction"])]
    parts += [(name, scored["images"], scored["figures"]) for name, scored in found["sets"].items()]
    for of, images, figures in parts:
        for name, figure in figures.items():
            on = features if name in _CSV_FEATURES or name.startswith(("fid", "kid", "frechet", "kernel")) else ""
            deviation = "" if figure["deviation"] is None else figure["deviation"]
            yield (
                of, name, figure["mean"], deviation, figure["draws"], images,
                reference, data["image_px"], data["crop"], on,
            )  # fmt: skip


def _resize(builds: Sequence[Mapping[str, Any]]) -> str:
    """How photos became images, in words: what differs between builds is in the stored settings."""
    if not builds:
        return "resized in an unknown way"
    exact = all(build["settings"].get("exact") for build in builds)
    return f"resized by Lanczos from a {'full' if exact else 'scaled'} decode"


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cell(figure: Mapping[str, Any]) -> str:
    deviation = figure["deviation"]
    return _short(figure["mean"]) + ("" if deviation is None else f" ±{deviation:.2g}")


def _short(value: float | None) -> str:
    """Four significant digits at most, and no exponent but for what is tiny."""
    if value is None:
        return ""
    if value == 0 or 1e-4 <= abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1e-4 else f"{value:.2f}"
