"""Train a model; `ostrack train --help` lists the options (needs torch)."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None here: training has its own parser, which `main` hands the rest of the line to."""


def run(arguments: argparse.Namespace) -> int:
    from ostrack_ros.training.command import main

    return main(arguments.rest)
