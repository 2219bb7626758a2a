"""Follow one target through a video, an image folder or a camera.

The boxes file has one line x,y,w,h per frame (pixels, 4 decimals), the first being the init box.
Without --presence the tracker is the published one, which always gives a box. With --presence it
is the one of the ROS node: it says when it is uncertain or has lost the target, coasts meanwhile,
and the CSV tells for each frame the state, the confidence and whether the box was measured; lines
of the boxes file then repeat the last box while the target is lost.

example:
  ostrack track --source clip.mp4 --init 217,125,405,271 --output boxes.txt --video out.mp4
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ostrack_ros.cli.common import (
    add_engine_arguments,
    open_engine,
    parse_box,
    positive,
    require_writable,
)
from ostrack_ros.cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ostrack_ros.engines.base import Engine
    from ostrack_ros.sources import FrameSource, SourceFrame
    from ostrack_ros.tracking.geometry import Box
    from ostrack_ros.tracking.tracker import Estimate, TrackerSettings

_COLUMNS = "frame,stamp,state,confidence,score,measured,x,y,w,h,vx,vy"


@dataclass(frozen=True, slots=True)
class _Step:
    """What the tracker made of a frame. `estimate` is None on the init frame; `box` is the last
    one where the estimate has none."""

    index: int
    stamp: int
    box: Box
    estimate: Estimate | None

    @property
    def label(self) -> str:
        if self.estimate is None:
            return "init"
        return f"{self.estimate.state.name.lower()} {self.estimate.confidence:.2f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument(
        "--source", required=True, help="video file, folder of images, camera (0) or stream URL"
    )
    parser.add_argument("--init", required=True, metavar="X,Y,W,H", help="the target, in pixels")
    parser.add_argument("--output", required=True, type=Path, help="boxes file to write")
    parser.add_argument("--video", type=Path, help="write the frames with their boxes (.mp4, .avi)")
    parser.add_argument("--presence", type=Path, metavar="CSV", help="see above")
    parser.add_argument("--rate", type=float, help="frames per second, instead of the source's")
    parser.add_argument("--start", type=int, default=0, help="frame to start on (default: 0)")
    parser.add_argument("--max-frames", type=positive, help="stop after so many frames")


def run(arguments: argparse.Namespace) -> int:
    from ostrack_ros.evaluation.report import format_boxes
    from ostrack_ros.files import write_atomically
    from ostrack_ros.progress import progress_bar
    from ostrack_ros.sources import open_source
    from ostrack_ros.tracking.presence import PresenceSettings
    from ostrack_ros.tracking.tracker import TrackerSettings

    init_box = parse_box(arguments.init)
    for path in (arguments.output, arguments.video, arguments.presence):
        if path is not None:
            require_writable(path)
    if arguments.start < 0:
        raise UsageError(f"--start is {arguments.start}, frames count from 0")
    source = open_source(arguments.source, arguments.rate)
    settings = TrackerSettings(presence=PresenceSettings() if arguments.presence else None)
    steps: list[_Step] = []
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(arguments))
        draw = _drawer(arguments.video, source, stack)
        advance = stack.enter_context(
            progress_bar(_count(source, arguments.start, arguments.max_frames))
        )
        frames = islice(source, arguments.start, _end(arguments.start, arguments.max_frames))
        started = time.perf_counter()
        try:
            for pixels, step in _follow(engine, settings, frames, init_box):
                draw(pixels, step)
                steps.append(step)
                advance(step.label)
        except KeyboardInterrupt:
            # A camera ends when its user says so; half a file would pass for a whole one.
            if not source.live:
                raise
        elapsed = time.perf_counter() - started
    if not steps:
        raise UsageError(f"{source.name} ends before frame {arguments.start}")
    write_atomically(arguments.output, format_boxes(step.box for step in steps))
    if arguments.presence:
        write_atomically(arguments.presence, _presence_table(steps))
    print(engine.description)
    print(f"{len(steps)} frames in {elapsed:.1f} s, decoding and drawing included")
    written = (arguments.output, arguments.video, arguments.presence)
    print("written: " + ", ".join(str(path) for path in written if path))
    return 0


def _follow(
    engine: Engine, settings: TrackerSettings, frames: Iterable[SourceFrame], init_box: Box
) -> Iterator[tuple[NDArray[np.uint8], _Step]]:
    from ostrack_ros.tracking.frame import Frame, PixelFormat
    from ostrack_ros.tracking.tracker import Tracker

    tracker = Tracker(engine, settings)
    box: Box | None = None
    for source_frame in frames:
        frame = Frame(source_frame.pixels, PixelFormat.BGR, source_frame.stamp)
        estimate = None
        if box is None:
            tracker.init(frame, init_box)
            box = init_box
        else:
            estimate = tracker.update(frame)
            box = estimate.box or box
        yield source_frame.pixels, _Step(source_frame.index, source_frame.stamp, box, estimate)


def _end(start: int, max_frames: int | None) -> int | None:
    return None if max_frames is None else start + max_frames


def _count(source: FrameSource, start: int, max_frames: int | None) -> int | None:
    """How many frames will come, where that is known."""
    if source.frame_count is None:
        return max_frames
    left = max(0, source.frame_count - start)
    return left if max_frames is None else min(left, max_frames)


def _drawer(
    path: Path | None, source: FrameSource, stack: ExitStack
) -> Callable[[NDArray[np.uint8], _Step], None]:
    """A function that writes each frame with its box to the video at `path`."""
    if path is None:
        return lambda pixels, step: None
    from ostrack_ros.drawing import draw_box, draw_label
    from ostrack_ros.palette import state_colour
    from ostrack_ros.tracking.presence import TargetState
    from ostrack_ros.video import VideoWriter

    video = stack.enter_context(VideoWriter(path, source.rate))

    def draw(pixels: NDArray[np.uint8], step: _Step) -> None:
        image = pixels.copy()
        state = step.estimate.state if step.estimate else TargetState.TRACKING
        red, green, blue = state_colour(state)
        colour = (blue, green, red)
        if step.estimate is None or step.estimate.box is not None:
            draw_box(image, step.box, colour)
        draw_label(image, f"{step.index} {step.label}", colour)
        video.write(image)

    return draw


def _presence_table(steps: Iterable[_Step]) -> str:
    """CSV with seconds, pixels and px/s; empty fields where there is no box or velocity."""
    lines = [_COLUMNS]
    for step in steps:
        estimate = step.estimate
        if estimate is None:
            fields = ["TRACKING", "", "", "1", *_fixed(step.box), "", ""]
        else:
            fields = [
                estimate.state.name,
                *_fixed((estimate.confidence, estimate.score)),
                str(int(estimate.measured)),
                *(_fixed(estimate.box) if estimate.box else [""] * 4),
                *(_fixed(estimate.velocity) if estimate.velocity else [""] * 2),
            ]
        lines.append(",".join([str(step.index), f"{step.stamp / 1e9:.6f}", *fields]))
    return "\n".join(lines) + "\n"


def _fixed(values: Iterable[float]) -> list[str]:
    return [f"{value:.4f}" for value in values]
