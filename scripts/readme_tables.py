"""Write the parameter tables of README.md from the code; test_readme.py checks that they fit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from ostrack_ros.files import write_atomically
from ostrack_ros.nodes.parameters import PARAMETERS
from ostrack_ros.nodes.video_node import DESCRIPTIONS, VideoSettings

README = Path(__file__).resolve().parent.parent / "README.md"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def _literal(value: object) -> str:
    """As in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def tracker_table() -> str:
    """The tracker node's parameters."""
    head = [("parameter", "default", "may change", ""), ("---",) * 4]
    rows = [
        (f"`{row.name}`", f"`{_literal(row.default)}`", row.change.value, row.description)
        for row in PARAMETERS
    ]
    return _table([*head, *rows])


def video_table() -> str:
    """The video node's parameters."""
    head = [("parameter", "default", ""), ("---",) * 3]
    rows = [
        (f"`{field.name}`", f"`{_literal(field.default)}`", DESCRIPTIONS[field.name])
        for field in fields(VideoSettings)
    ]
    return _table([*head, *rows])


def with_tables(text: str) -> str:
    """`text` with the tables between their marks replaced."""
    for name, table in (("tracker", tracker_table()), ("video", video_table())):
        mark = f"<!-- parameters: {name} -->\n"
        pattern = re.compile(re.escape(mark) + r".*?<!-- end -->", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no mark {mark.strip()}")
        replacement = f"{mark}{table}<!-- end -->"
        text = pattern.sub(replacement.replace("\\", r"\\"), text)
    return text


def main() -> None:
    """Rewrite README.md in place."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_atomically(README, with_tables(README.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
