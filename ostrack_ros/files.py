"""Write files so that a reader, or a power cut, never meets half of one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step; text is written as UTF-8."""
    data = content.encode() if isinstance(content, str) else content

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    produce_atomically(path, write)


def produce_atomically(path: Path, produce: Callable[[Path], None]) -> None:
    """Let `produce` write a temporary file beside `path`, then put it in place in one step.

    The temporary file keeps the suffix of `path`, for writers that go by it. It is removed when
    `produce` raises. Folders on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        produce(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
