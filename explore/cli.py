"""`explore COMMAND --run runs/NAME`: pictures, figures and numbers of a trained face VAE."""

import importlib
import sys
from collections.abc import Sequence

import tyro
from rich.console import Console

from explore.commands import MODULES, Command, Common
from pipeline.errors import LeanstreamError, report_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. What was written is printed, a file a line."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    console = Console(highlight=False)
    try:
        command: Common = tyro.cli(Command, args=arguments, prog="explore", description=__doc__)
        command.check()
        module = importlib.import_module(f"explore.{MODULES[type(command)]}")
        for path in module.run(command, console):
            console.print(str(path), soft_wrap=True, markup=False)
    except KeyboardInterrupt:
        return 130
    except (LeanstreamError, OSError) as error:
        if "--debug" in arguments:
            raise
        return report_error(error, "exploring")
    return 0


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
