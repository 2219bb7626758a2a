"""What a benchmark leaves: a JSON file that says when and on which machine it was measured."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ostrack_ros.files import write_atomically
from ostrack_ros.machine import describe_machine

RESULTS = Path(__file__).resolve().parent / "results"


def write_record(folder: Path, name: str, contents: dict[str, Any]) -> Path:
    """Write `contents`, dated, as FOLDER/NAME.json; returns its path."""
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        **contents,
    }
    path = folder / f"{name}.json"
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    return path
