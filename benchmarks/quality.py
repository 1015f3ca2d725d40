"""What the objectives and models reach on the same photos in the same time, on the same cores.

    python benchmarks/quality.py --photos PHOTOS --minutes 10        (PHOTOS in CelebA's layout, partition included)

    photos --> shard set, 64 px: train, and everybody held out (the partition's val and test) as one split
           --> a run of the trainer for each contender, one after another
           --> the trainer's own score on the held-out people, and samples against their photos

A run's length in images is not known before its speed is. So it is trained in legs, each of which goes on from the
last: a first one far from its end, where the cosine is still flat; then, twice, the length is set anew from the speed
so far. `minutes` is the wall time of the trainer, pictures and saves included.

A contender that has a result in `--work` is not trained again, and an interrupted one goes on.
"""

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from explore.measures.distances import sliced_wasserstein  # noqa: E402
from pipeline import Dataset  # noqa: E402
from pipeline.counter import normal  # noqa: E402
from pipeline.errors import EXIT_RUN_AGAIN, LeanstreamError, UserError, report_error  # noqa: E402
from pipeline.machine import usable_cores  # noqa: E402
from shard_tool.cli import main as shard_tool  # noqa: E402
from train.evaluate import aggregate_posterior, score, stream_images  # noqa: E402
from train.objectives import Likelihood  # noqa: E402
from train.pretrained import TRAINING_FILE, load_pretrained  # noqa: E402
from train.runfolder import RunFolder  # noqa: E402

SIZE = 64
HELD_OUT = "test"
PARTITION = "list_eval_partition.csv"
LEGS = (0.1, 0.5, 1.0)
"""Shares of the time after which a run's length is set anew; the last is its end."""
FAR = 100_000_000
"""Images of a first leg's run: so many that the cosine stays flat."""
FINISH_S = 5.0
"""Fitting the prior and writing the model, which come after the last image."""

COMMON = "--train.batch-size 32 --data.flip --train.prior-images 64"
CONTENDERS = {
    "keras objective, conv": "--model.kind conv --loss.objective mse --loss.mse-weight 10000",
    "optimal sigma, conv": "--model.kind conv --loss.objective optimal_sigma",
    "optimal sigma, residual": "--model.kind residual --loss.objective optimal_sigma --model.widths 32 64 128 256",
    "optimal sigma, conv, latent 256": "--model.kind conv --loss.objective optimal_sigma --model.latent 256",
}


@dataclass(frozen=True)
class Result:
    """One contender."""

    name: str
    settings: str
    minutes: float
    images: int
    images_per_s: float
    data_wait_share: float
    parameters: int
    precision: str
    threads: int
    psnr_db: float
    ssim: float
    sharpness: float
    rate_nats: float
    bits_per_dimension: float
    active_units: int
    swd_reconstructions: float
    """Of reconstructions and the photos themselves."""
    swd_samples: float
    """Of as many samples from the Gaussian fitted to the latent codes of the training photos."""


def main() -> int:
    """Train, score, print; returns 0 where the best is `--gain` dB over the first and its samples are no worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with photos and list_eval_partition.csv")
    parser.add_argument("--minutes", type=float, default=10.0, help="wall time of each run")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="folder for the set, runs and results")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders to train")
    parser.add_argument("--extra", default="", help="settings of the trainer on top, for all contenders")
    parser.add_argument("--gain", type=float, default=2.5, help="dB that the best must be over the first")
    options = parser.parse_args()
    try:
        return run(options)
    except (LeanstreamError, OSError) as error:
        return report_error(error, "running the benchmark")


def run(options: argparse.Namespace) -> int:
    """The whole benchmark."""
    options.work.mkdir(parents=True, exist_ok=True)
    shards = held_out_set(options.photos, options.work)
    results = [contend(name, options, shards) for name in options.only]
    (options.work / "quality.json").write_text(json.dumps([asdict(one) for one in results], indent=1))
    print(as_markdown(results, shards))
    best, first = max(results, key=lambda one: one.psnr_db), results[0]
    gain = best.psnr_db - first.psnr_db
    print(f"\n{best.name} is {gain:.2f} dB over {first.name}; samples {best.swd_samples:.1f}, {first.swd_samples:.1f}")
    return 0 if gain >= options.gain and best.swd_samples <= first.swd_samples else 1


def held_out_set(photos: Path, work: Path) -> Dataset:
    """The photos as shards, with the partition's val and test as one split that the trainer never looks at."""
    folder = work / f"faces-{SIZE}"
    if not (folder / "shardset.json").exists():
        partition = photos / PARTITION
        if not partition.exists():
            raise UserError(f"the photos must come with {PARTITION}; got none in {photos}. Name CelebA's folder.")
        table = work / "held-out.csv"
        with partition.open(newline="") as lines, table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_id", "split"])
            for name, number in list(csv.reader(lines))[1:]:
                writer.writerow([name, "train" if number == "0" else HELD_OUT])
        code = shard_tool(
            ["make-shards", str(photos), "--size", str(SIZE), "--labels", str(table), "--out", str(folder), "--quiet"]
        )
        if code:
            raise UserError(f"the photos must become shards; got exit code {code}. See the message above.")
    return Dataset.open(folder)


def contend(name: str, options: argparse.Namespace, shards: Dataset) -> Result:
    """Train one contender, or go on with it, and score it."""
    settings = " ".join(f"{COMMON} {CONTENDERS[name]} {options.extra}".split())
    folder = options.work / name.replace(", ", "-").replace(" ", "-")
    file = folder / "result.json"
    asked = {"settings": settings, "asked_minutes": options.minutes}
    if file.exists():
        found = json.loads(file.read_bytes())
        if found["asked"] == asked:
            return Result(**found["result"])
        raise UserError(f"{file} must be of this benchmark; got one of {found['asked']}. Choose another --work.")
    print(f"{name}: {options.minutes:g} minutes", flush=True)
    train_for(options.minutes, settings, folder, shards)
    result = examine(name, settings, folder, shards)
    file.write_text(json.dumps({"asked": asked, "result": asdict(result)}, indent=1))
    return result


def train_for(minutes: float, settings: str, folder: Path, shards: Dataset) -> None:
    """Train in legs, so that the schedule's end comes when the time is over."""
    for share in LEGS:
        done, left_s = progress(folder), 60 * minutes
        if done is not None:
            left_s -= done["total_wall_s"]
        if done is not None and (done["finished"] or left_s <= 60 * minutes * (1 - share)):
            continue
        images = FAR
        if done is not None:
            images = done["position"] + max(0, round(done["speed"] * (left_s - FINISH_S)))
        arguments = [*settings.split(), "--train.total-images", str(images), "--data.shards", *shards.locations]
        if share < 1:
            arguments += ["--run.max-minutes", str(left_s / 60 - minutes * (1 - share))]
        command = [sys.executable, str(ROOT / "train" / "run.py"), "--run.dir", str(folder), *arguments]
        code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
        if code not in (0, EXIT_RUN_AGAIN):
            raise UserError(f"the trainer must succeed; got exit code {code}. See the message above.")


def progress(folder: Path) -> dict[str, Any] | None:
    """What the trainer's summary says after a leg, and the images a second of that leg, pictures and saves included."""
    run = RunFolder(folder)
    if not run.summary_file.exists():
        return None
    summary: dict[str, Any] = json.loads(run.summary_file.read_bytes())
    began = [line.get("position", 0) for line in run.read_ledger() if line["event"] in ("start", "resume")][-1]
    return {**summary, "speed": (summary["position"] - began) / summary["wall_s"]}


def examine(name: str, settings: str, folder: Path, shards: Dataset) -> Result:
    """Every figure, from the finished model: averaged weights, float32."""
    torch.set_num_threads(usable_cores())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _, facts = load_pretrained(folder / "final", device)
    found = score(model, shards, HELD_OUT, device, Likelihood("gaussian", facts["sigma"] ** 2))
    prior = aggregate_posterior(model, shards, "train", shards.split("train").total, device)
    photos = torch.cat([images.cpu() for images in stream_images(shards, HELD_OUT, None, device)])
    noise = torch.from_numpy(normal(np.arange(len(photos)), model.latent, seed=0, stream="benchmark"))
    with torch.inference_mode():
        answers = torch.cat([model.decode(model.encode(part.to(device))[0]).cpu() for part in photos.split(64)])
        samples = torch.cat([model.decode(prior.sample(part).to(device)).cpu() for part in noise.split(64)])
    summary = json.loads((folder / "summary.json").read_bytes())
    training = json.loads((folder / "final" / TRAINING_FILE).read_bytes())
    return Result(
        name=name,
        settings=settings,
        minutes=summary["total_wall_s"] / 60,
        images=summary["position"],
        images_per_s=summary["images_per_s"],
        data_wait_share=summary["data_wait_share"],
        parameters=training["parameters"],
        precision=training["precision"],
        threads=torch.get_num_threads(),
        psnr_db=found.psnr_db,
        ssim=found.ssim,
        sharpness=found.sharpness,
        rate_nats=found.rate_nats,
        bits_per_dimension=found.bits_per_dimension,
        active_units=found.active_units,
        swd_reconstructions=sliced_wasserstein(answers, photos).mean,
        swd_samples=sliced_wasserstein(samples, photos).mean,
    )


def as_markdown(results: list[Result], shards: Dataset) -> str:
    """The table, and what it was measured on."""
    people = shards.split(HELD_OUT).total
    lines = [
        f"{shards.split('train').total:,} photos, {shards.image_size} px, held out {people:,} photos of other people; "
        f"{results[0].precision}, {results[0].threads} threads, torch {torch.__version__}; settings: {COMMON}",
        "",
        "| | minutes | images | images/s | data wait | parameters | PSNR, dB | SSIM | sharpness | rate, nats "
        "| bits/dim | active | SWD reconstructions | SWD samples |",
        "|---|" + "---|" * 13,
    ]
    for one in results:
        lines.append(
            f"| {one.name} | {one.minutes:.1f} | {one.images:,} | {one.images_per_s:.0f} | {one.data_wait_share:.1%} "
            f"| {one.parameters / 1e6:.1f}M | {one.psnr_db:.2f} | {one.ssim:.3f} | {one.sharpness:.2f} "
            f"| {one.rate_nats:.0f} | {one.bits_per_dimension:.3f} | {one.active_units} "
            f"| {one.swd_reconstructions:.1f} | {one.swd_samples:.1f} |"
        )
    lines += ["", *(f"- {one.name}: `{CONTENDERS[one.name]}`" for one in results)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
