"""The `shard_tool` command: photos in, shard sets out.

    shard_tool draw-faces raw/ --count 2000
    shard_tool make-shards raw/ --size 64
    shard_tool inspect shards/raw-64
    shard_tool verify shards/raw-64
    shard_tool preview shards/raw-64
    shard_tool index webdataset/

Errors are one line on stderr; `--debug` adds the traceback.
"""

import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.errors import EXIT_DONE, EXIT_FAULT, LeanstreamError, UserError, report_error
from pipeline.files import expand_home
from pipeline.machine import usable_cores
from shard_tool.options import MakeShards

EXIT_INTERRUPTED = 130
_WENT = {
    "--append": "Make a set of the new photos (make-shards PHOTOS --out OTHER --not-in SET) and train on both",
    "--repair": "Run the make-shards command of the set again: it makes damaged shards anew",
}


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
    """Check that a shard set is what was written: every hash, image, label and key.

    Exit code 0: whole; 1: damaged; 2: it could not be checked.
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder of a finished shard set."""
    quick: bool = False
    """Only compare the hashes of files, as fast as they can be read; no image is decoded."""
    readers: bool = False
    """Read the set with webdataset and datasets too, and compare every key, image and label with what we read."""
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
            args=_with_ray_address(_without_what_went(arguments)),
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
        told = f"{type(error).__name__}: {error}. Run it again with --debug and report this."
        if isinstance(error, MemoryError) or "start new thread" in str(error):
            told = "the work must fit the memory; got none left. End other programs, or lower --threads."
        print(f"error: {told}", file=sys.stderr)
        return EXIT_FAULT


def _without_what_went(arguments: list[str]) -> list[str]:
    """The arguments; `UserError` names what an option that earlier versions had has become."""
    for option, instead in _WENT.items():
        if option in arguments:
            raise UserError(f"{option} must be left out: it has gone. {instead}.")
    return arguments


def _with_ray_address(arguments: list[str]) -> list[str]:
    """`--ray` alone means a cluster that is started here; what follows it may be the source and not an address."""
    if "--ray" not in arguments:
        return arguments
    after = arguments.index("--ray") + 1
    word = "".join(arguments[after : after + 1])
    # A folder of that name is a source: `--ray=local` says the other thing.
    address = re.fullmatch(r"auto|local|ray://.+|[\w.-]+:\d+", word) and not Path(word).exists()
    return arguments if address else [*arguments[:after], "local", *arguments[after:]]


def run() -> None:
    """The console script."""
    sys.exit(main())


def _run(command: DrawFaces | MakeShards | Inspect | Verify | Preview | IndexTars) -> int:
    if isinstance(command, Verify):
        return _verify(command)
    # Imported where they run: help must not wait for what decodes and paints.
    if isinstance(command, Inspect):
        from shard_tool.care.inspect import inspect_sets

        return inspect_sets(command.folders, as_json=command.json)
    if isinstance(command, MakeShards):
        from shard_tool.build.make import make_shards

        return make_shards(command)
    if isinstance(command, DrawFaces):
        _draw_faces(command)
    elif isinstance(command, IndexTars):
        _index(command)
    else:
        _preview(command)
    return EXIT_DONE


def _draw_faces(command: DrawFaces) -> None:
    from demo import draw_faces
    from shard_tool.display import show_progress

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


def _verify(command: Verify) -> int:
    from shard_tool.care.verify import verify

    return verify(
        command.folder,
        quick=command.quick,
        readers=command.readers,
        threads=usable_cores() if command.threads is None else command.threads,
        as_json=command.json,
        quiet=command.quiet,
    )


def _index(command: IndexTars) -> None:
    from shard_tool.care.index import index_folder

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
    from shard_tool.display import show_progress

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
