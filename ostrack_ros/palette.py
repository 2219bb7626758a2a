"""One colour per state wherever a target is drawn: telling them apart must not need the label."""

from __future__ import annotations

from ostrack_ros.tracking.presence import TargetState

RGB = tuple[int, int, int]

_COLOURS: dict[TargetState, RGB] = {
    TargetState.IDLE: (190, 190, 190),
    TargetState.TRACKING: (60, 220, 90),
    TargetState.UNCERTAIN: (255, 190, 40),
    TargetState.COASTING: (70, 170, 255),
    TargetState.LOST: (255, 70, 70),
}


def state_colour(state: TargetState) -> RGB:
    """Red, green, blue in 0..255."""
    return _COLOURS[state]
