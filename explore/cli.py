"""`explore COMMAND --run runs/NAME`: pictures, figures and numbers of a trained face VAE."""

import functools
import importlib
import operator
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import subcommand

from explore.commands import COMMANDS, Common
from pipeline.errors import LeanstreamError, report_error
from pipeline.files import expand_home


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. What was written is printed, a file a line."""
    arguments = expand_home(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False)
    try:
        command = parse(arguments)
        command.check()
        name = next(name for name, kind in COMMANDS.items() if kind is type(command))
        module = importlib.import_module(f"explore.{name.replace('-', '_')}")
        for path in module.run(command, console):
            console.print(str(path), soft_wrap=True, markup=False)
    except KeyboardInterrupt:
        return 130
    except (LeanstreamError, OSError) as error:
        if "--debug" in arguments:
            raise
        return report_error(error, "exploring")
    return 0


def parse(arguments: Sequence[str]) -> Common:
    """The command and its options; prints help and usage errors, and exits with 0 or 2."""
    kinds: Any = functools.reduce(operator.or_, (Annotated[kind, subcommand(name)] for name, kind in COMMANDS.items()))
    command: Common = tyro.cli(kinds, args=arguments, prog="explore", description=__doc__)
    return command


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
