"""Argument parsing and errors, the same for all subcommands.

Subcommands import what they need when they run, so that `ostrack --help` is instant and torch is
needed for `export` and `train` only.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from ostrack_ros import __version__
from ostrack_ros.cli import bench, build, evaluate, export, track, train
from ostrack_ros.cli.errors import UsageError, describe_error

_COMMANDS = {
    "track": track,
    "evaluate": evaluate,
    "bench": bench,
    "export": export,
    "build": build,
    "train": train,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ostrack`; returns the exit status: 0, 1 for an error, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments[:1] == ["train"]:
        # Its options are those of training, which needs torch to be listed.
        parsed, run = argparse.Namespace(rest=arguments[1:], verbose=False), train.run
    else:
        parsed = parser.parse_args(arguments)
        run = _COMMANDS[parsed.command].run
    logging.basicConfig(
        level=logging.INFO if parsed.verbose else logging.WARNING, format="%(message)s"
    )
    try:
        return run(parsed)
    except KeyboardInterrupt:
        print("ostrack: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) left; that is not an error.
        sys.stderr.close()
        return 0
    except Exception as error:
        message = describe_error(error)
        if message is None:
            raise
        print(f"ostrack: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ostrack", description="OSTrack single object tracking, without ROS."
    )
    parser.add_argument("--version", action="version", version=f"ostrack {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        documentation = (importlib.import_module(module.__name__).__doc__ or "").strip()
        command = commands.add_parser(
            name,
            help=documentation.splitlines()[0],
            description=documentation,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("-v", "--verbose", action="store_true", help="say what is going on")
        module.add_arguments(command)
    return parser
