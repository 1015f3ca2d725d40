"""The `shard_tool` command: photos in, shard sets out.

    shard_tool draw-faces raw/ --count 2000
    shard_tool make-shards raw/ --size 64
    shard_tool inspect shards/raw-64
    shard_tool verify shards/raw-64
    shard_tool preview shards/raw-64
    shard_tool index webdataset/

Errors are one line on stderr; `--debug` adds the traceback.
"""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from pipeline import Dataset
from pipeline.errors import EXIT_DONE, EXIT_FAULT, LeanstreamError, UserError, report_error
from pipeline.files import expand_home
from pipeline.format import SHARDSET_FILE
from pipeline.machine import parse_bytes, usable_cores
from shard_tool.build.make import Manner, make_shards
from shard_tool.build.unfinished import find_unfinished, show_unfinished
from shard_tool.care.contents import describe, describe_together, show, show_together
from shard_tool.display import show_progress
from shard_tool.image.photo import Recipe
from shard_tool.settings import Settings
from shard_tool.sources.protocol import Wanted

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    debug: bool = False
    """Show the full traceback of an error."""


@dataclass(frozen=True)
class DrawFaces(Common):
    """Draw varied portraits and a table of their attributes: a data set that belongs to nobody."""

    out: tyro.conf.Positional[Path]
    """Folder for the pictures and list_attr_celeba.csv."""
    count: int = 2000
    """Pictures to draw."""
    size: int = 600
    """Height and width of each, pixels."""
    seed: int = 0
    """Another seed, other faces."""
    workers: int | None = None
    """Processes to draw with; by default one for each core."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(frozen=True)
class MakeShards(Common):
    """Turn photos into a shard set. Killed or interrupted, the same command goes on where it stopped."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """One or more of: a folder of photos, a zip, a tar (also .tar.gz), WebDataset shards, parquet files, a folder that
    `datasets` has saved, a URL of any of these (s3://, gs://, https://), hf://datasets/USER/NAME. Globs in quotes."""
    size: int = 64
    """Height and width of the samples, pixels."""
    out: str | None = None
    """Folder or bucket (s3://bucket/faces-64) for the set; by default shards/<name of the source>-<size>."""
    crop: Literal["center", "pad", "stretch", "none"] | int = "center"
    """center: the largest centred square; N: a centred square of N pixels; pad: the whole photo, with background on two
    sides; stretch, or none: the whole photo, stretched to a square."""
    encode: Literal["jpeg", "png", "webp", "raw"] = "jpeg"
    """Encoding of the samples; raw (.npy) needs no decoding and the most space."""
    quality: int = 95
    """Quality of jpeg and webp, 1 to 100."""
    subsampling: Literal["444", "420"] = "444"
    """Of jpeg: 444 keeps a colour for each pixel; 420 one for four pixels, in less space."""
    background: str = "white"
    """What lies behind transparent pixels and beside padded photos: white, black or #rrggbb."""
    upscale: bool = False
    """Enlarge photos that are smaller than the samples. Otherwise they are rejected."""
    exact: bool = False
    """Decode every pixel of large JPEG photos. Otherwise they are decoded at a fraction of their size, several times as
    fast, and hardly a pixel differs by more than a level or two."""
    val_fraction: float = 0.05
    """Share of the photos for the val split, where no list_eval_partition.csv says which."""
    shard_samples: int | None = None
    """Most samples in one shard; by default 4096."""
    shard_size: str | None = None
    """Most bytes of one shard, such as 100MB or 1GiB, in place of a number of samples."""
    seed: int = 0
    """Seed of the order in which photos are spread over the shards."""
    keep_order: bool = False
    """Keep the order of the listing, for sets where it matters; else photos are mixed."""
    drop_duplicates: bool = False
    """Leave out photos with the same bytes as an earlier one; they are listed in rejected.jsonl."""
    append: bool = False
    """Add the photos that a finished set does not have yet, as a new part; its shards stay as they are."""
    threads: int | None = None
    """Threads to decode with; by default one for each core. The bytes do not depend on it."""
    limit: int | None = None
    """Take only this many photos, spread over the whole source by the seed."""
    labels: str | None = None
    """A table of labels (csv, tsv or txt): attributes, or classes, and splits. Or the word folders: the name of the
    folder that a photo lies in is its class. By default CelebA's tables are taken where they lie beside the photos."""
    no_json: bool = False
    """Leave out the json of each sample, its source and labels: the leanest set."""
    ray: str | None = None
    """Build on a Ray cluster: its address, or nothing for one that is started here."""
    staging: Path = Path("shards/.staging")
    """Folder for shards on their way to a bucket; they leave it as soon as they have arrived."""
    force: bool = False
    """Begin even if the disk seems too small."""
    dry_run: bool = False
    """Say what would be done, with an estimate of space and time, and write nothing."""
    quiet: bool = False
    """Print nothing but errors."""
    image: str | None = None
    """For tables (parquet, datasets): the column of the images, where there are several."""
    label: str | None = None
    """For tables: the column of classes; by default the only one whose classes have names."""
    attributes: tuple[str, ...] | None = None
    """For tables: columns of 0/1 attributes; by default all columns of truth values, and those named as CelebA's."""
    config: str | None = None
    """For hf://datasets/...: the configuration, where there are several."""
    split: str | None = None
    """For saved datasets and hf://datasets/...: the only split to take; by default all, as splits of the set."""
    revision: str | None = None
    """For hf://datasets/...: branch, tag or commit; by default the newest. The commit is recorded in the set."""


@dataclass(frozen=True)
class Inspect(Common):
    """Show what a shard set holds, and the lines that open it; of one that is not finished, how to go on.

    Of several sets also what they are if they are read as one. Exit code 0: finished; 1: not finished; 2: no shard set,
    or sets that cannot be read as one.
    """

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DIR ...")] = ()
    """Folder of a shard set, or several; DIR*3 is read three times an epoch."""
    json: bool = False
    """Print everything as JSON."""


@dataclass(frozen=True)
class Verify(Common):
    """Check that a shard set is what was written: every hash, image, label and key. Repair it if it is not.

    Exit code 0: whole; 1: damaged; 2: it could not be checked.
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder of a finished shard set."""
    quick: bool = False
    """Only compare the hashes of files, as fast as they can be read."""
    repair: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PHOTOS ...")] = ()
    """The photos that the set was made of, as they were given to make-shards: damaged shards are made again, and take
    their place if they have the very bytes that are recorded."""
    labels: str | None = None
    """For a repair: the table that was given to make-shards by --labels, where it does not lie beside the photos."""
    threads: int | None = None
    """Threads to check with; by default one for each core."""
    json: bool = False
    """Print everything that was found as JSON."""
    quiet: bool = False
    """Print nothing but problems, and these on stderr."""


@dataclass(frozen=True)
class Preview(Common):
    """Paint a contact sheet of a shard set: faces, keys and labels."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder of a finished shard set."""
    out: Path | None = None
    """Picture to write (.jpg, .png or .webp); by default <name of the set>-preview.jpg in the current folder."""
    count: int = 64
    """Most samples to show."""
    split: str | None = None
    """Show samples of this split; by default of train, or of the first that there is."""
    seed: int = 0
    """Another seed, other samples."""
    attribute: str | None = None
    """Show only samples that have this attribute, or are of this class."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(frozen=True)
class IndexTars(Common):
    """Make a WebDataset from anywhere stream here, if its images are squares of one size. No tar is written to."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder in which the tars lie side by side."""
    image: Annotated[str, tyro.conf.arg(metavar="SUFFIX")] = ""
    """Suffix of the member that is the image (jpg, left.png), where samples hold several."""
    split: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=GLOB")] = ()
    """Tars that belong to a split, e.g. 'val=shard-0009*.tar'; may be given several times. By default a tar's name says
    its split (train-*, val-*, validation-*, test-*), and all others are train."""
    threads: int | None = None
    """Tars to read at the same time; by default one for each core."""
    quiet: bool = False
    """Print nothing but errors."""


Command = (
    Annotated[DrawFaces, tyro.conf.subcommand("draw-faces", prefix_name=False)]
    | Annotated[MakeShards, tyro.conf.subcommand("make-shards", prefix_name=False)]
    | Annotated[Inspect, tyro.conf.subcommand("inspect", prefix_name=False)]
    | Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
    | Annotated[Preview, tyro.conf.subcommand("preview", prefix_name=False)]
    | Annotated[IndexTars, tyro.conf.subcommand("index", prefix_name=False)]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 a fault, 2 the user's error, 130 interrupted."""
    arguments = expand_home(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        command = tyro.cli(
            Command,
            prog="shard_tool",
            description="Turn photos of faces into shard sets that stream.",
            args=_with_ray_address(arguments),
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        code = _run(command)
        sys.stdout.flush()  # While a closed pipe can still be handled.
        return code
    except SystemExit as stop:  # tyro has printed help or what is wrong with the arguments.
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    except KeyboardInterrupt:
        goes_on = " The same command goes on where it stopped." if arguments[:1] == ["make-shards"] else ""
        print(f"\nInterrupted.{goes_on}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # Who reads our output has seen enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except (LeanstreamError, OSError) as error:
        if debug:
            traceback.print_exc()
        return report_error(error, arguments[0])
    except Exception as error:  # A fault of ours, and no help to anybody as a page of code.
        if debug:
            traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}. Run it again with --debug and report this.", file=sys.stderr)
        return EXIT_FAULT


def _with_ray_address(arguments: list[str]) -> list[str]:
    """`--ray` alone means a cluster that is started here; what follows it may be the source and not an address."""
    if "--ray" not in arguments:
        return arguments
    after = arguments.index("--ray") + 1
    address = re.fullmatch(r"auto|local|ray://.+|[\w.-]+:\d+", "".join(arguments[after : after + 1]))
    return arguments if address else [*arguments[:after], "local", *arguments[after:]]


def run() -> None:
    """The console script."""
    sys.exit(main())


def _run(command: DrawFaces | MakeShards | Inspect | Verify | Preview | IndexTars) -> int:
    if isinstance(command, Verify):
        return _verify(command)
    if isinstance(command, Inspect):
        return _inspect(command)
    if isinstance(command, DrawFaces):
        _draw_faces(command)
    elif isinstance(command, MakeShards):
        _make_shards(command)
    elif isinstance(command, IndexTars):
        _index(command)
    else:
        _preview(command)
    return EXIT_DONE


def _draw_faces(command: DrawFaces) -> None:
    from demo import draw_faces  # Nobody else needs what it loads.

    started = time.monotonic()
    with show_progress("drawing", command.count, quiet=command.quiet, counted="") as report:
        draw_faces(
            command.out,
            count=command.count,
            size=command.size,
            seed=command.seed,
            workers=command.workers,
            progress=lambda done: report(done, 0),
        )
    if not command.quiet:
        print(f"{command.count:,} faces in {command.out} after {time.monotonic() - started:.0f} s.")
        print(f"Next: shard_tool make-shards {command.out} --size 64")


def _make_shards(command: MakeShards) -> None:
    if command.shard_samples is not None and command.shard_size is not None:
        raise UserError("shards must be limited by --shard-samples or by --shard-size; got both. Leave one out.")
    settings = Settings(
        Recipe(
            command.size,
            "stretch" if command.crop == "none" else command.crop,
            command.encode,
            command.quality,
            command.subsampling,
            command.background,
            command.upscale,
            command.exact,
        ),
        val_fraction=command.val_fraction,
        shard_samples=4096 if command.shard_samples is None else command.shard_samples,
        shard_bytes=None if command.shard_size is None else parse_bytes(command.shard_size, "shard-size"),
        seed=command.seed,
        keep_order=command.keep_order,
        drop_duplicates=command.drop_duplicates,
        limit=command.limit,
        json=not command.no_json,
        labels=None if command.labels is None else Path(command.labels).name,
    )
    if not command.sources:
        raise UserError("make-shards must be told where the photos are; got no source. Name a folder, a zip or a URL.")
    manner = Manner(
        threads=usable_cores() if command.threads is None else command.threads,
        ray=command.ray,
        staging=command.staging,
        append=command.append,
        dry_run=command.dry_run,
        force=command.force,
        quiet=command.quiet,
    )
    wanted = Wanted(command.image, command.label, command.attributes, command.config, command.split, command.revision)
    make_shards(command.sources, command.out, settings, manner, labels=command.labels, wanted=wanted)


def _inspect(command: Inspect) -> int:
    if not command.folders:
        raise UserError("inspect must be told which shard set to show; got none. Name a folder.")
    console, opened, contents = Console(), list[Dataset](), list[dict[str, Any]]()
    for folder in command.folders:
        begun = None if (Path(folder) / SHARDSET_FILE).exists() else find_unfinished(Path(folder))
        if begun is None:
            opened.append(Dataset.open(folder))
        contents.append(begun or describe(opened[-1].sets[0]))
        if command.json:
            continue
        if len(contents) > 1:
            console.print()
        (show_unfinished if begun else show)(contents[-1], console)
    if len(contents) > 1:
        _inspect_together(opened, contents, console, as_json=command.json)
    elif command.json:
        _print_json(contents[0])
    return EXIT_DONE if len(opened) == len(contents) else EXIT_FAULT


def _inspect_together(
    opened: Sequence[Dataset], contents: Sequence[dict[str, Any]], console: Console, *, as_json: bool
) -> None:
    """Show sets as one, if all are finished; `UserError` where they do not go together."""
    complete, together = len(opened) == len(contents), None
    try:
        if complete:
            dataset = Dataset(tuple(one.sets[0] for one in opened), tuple(one.repeats[0] for one in opened))
            together = describe_together(dataset)
    finally:
        if as_json:
            _print_json({"complete": complete, "sets": contents, "together": together})
    if together is not None and not as_json:
        console.print()
        show_together(together, console)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False))


def _verify(command: Verify) -> int:
    from shard_tool.care.verify import verify  # It loads a decoder that no other command needs.

    return verify(
        command.folder,
        quick=command.quick,
        photos=command.repair,
        labels=command.labels,
        threads=usable_cores() if command.threads is None else command.threads,
        as_json=command.json,
        quiet=command.quiet,
    )


def _index(command: IndexTars) -> None:
    from shard_tool.care.index import index_folder  # It loads a decoder that no other command needs.

    if command.threads is not None and command.threads < 1:
        raise UserError(f"threads must be at least 1; got {command.threads}. Leave it out for one for each core.")
    index_folder(
        command.folder,
        image=command.image,
        splits=command.split,
        threads=usable_cores() if command.threads is None else command.threads,
        quiet=command.quiet,
    )


def _preview(command: Preview) -> None:
    from shard_tool.care.preview import preview

    with show_progress("looking for images", command.count, quiet=command.quiet, counted="") as report:
        written = preview(
            command.folder,
            command.out,
            count=command.count,
            split=command.split,
            seed=command.seed,
            attribute=command.attribute,
            report=report,
        )
    if not command.quiet:
        print(f"{written} shows samples of {command.folder}.")
