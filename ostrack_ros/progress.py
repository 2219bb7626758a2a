"""A progress bar on stderr, with what rich 11 has, Ubuntu 22.04's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int | None, unit: str = "frames") -> Iterator[Callable[[str], None]]:
    """Show a bar; call what it gives once per step with a word on what is being done.

    An unknown `total` shows steps and speed only. Without a terminal only the end is printed.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    known = total is not None
    counts = f"{{task.completed:.0f}}/{total if known else '?'} {unit}  {{task.fields[speed]}}"
    columns: list[ProgressColumn] = [TextColumn("{task.description}")]
    columns += [BarColumn()] if known else []
    columns += [TextColumn(counts), TimeElapsedColumn()]
    columns += [TimeRemainingColumn()] if known else []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total if known else math.inf, speed="")

        def advance(description: str) -> None:
            speed = progress.tasks[0].speed
            progress.update(
                task,
                advance=1,
                description=description,
                speed=f"{speed:.1f}/s" if speed else "",
            )

        yield advance


@contextmanager
def fraction_bar() -> Iterator[Callable[[float | None, str], None]]:
    """Show a bar for work that reports a fraction in [0, 1] (None: unknown) and a line of text."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    ) as progress:

        def report(fraction: float | None, text: str) -> None:
            # The bar appears with the first report, so that an error before it stands alone.
            task = progress.task_ids[0] if progress.task_ids else progress.add_task("", total=1.0)
            if fraction is None:
                progress.update(task, description=text)
            else:
                progress.update(task, completed=fraction, description=text)

        yield report
