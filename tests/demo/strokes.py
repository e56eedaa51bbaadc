"""Digits as a hand draws them: the points that the pen passes, in a square from 0 to 1, x to the right and y down."""

from __future__ import annotations

import math

Point = tuple[float, float]
Stroke = list[Point]


def arc(centre: Point, radii: Point, start: float, end: float, steps: int = 12) -> Stroke:
    """Points on an ellipse from one angle to another, in degrees clockwise from the right."""
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in angles]


# The strokes of each digit
DIGITS: list[list[Stroke]] = [
    [arc((0.5, 0.5), (0.25, 0.4), -90, 275, 24)],
    [[(0.5, 0.1), (0.5, 0.9)]],
    [[*arc((0.5, 0.32), (0.24, 0.22), -170, 30), (0.28, 0.9), (0.76, 0.9)]],
    [[*arc((0.47, 0.3), (0.22, 0.2), -150, 90), *arc((0.47, 0.7), (0.26, 0.2), -90, 150)]],
    [[(0.6, 0.1), (0.25, 0.62), (0.8, 0.62)], [(0.62, 0.4), (0.62, 0.9)]],
    [[(0.7, 0.1), (0.34, 0.1), (0.32, 0.44), *arc((0.46, 0.66), (0.24, 0.24), -115, 140)]],
    [[(0.62, 0.1), (0.4, 0.35), *arc((0.5, 0.68), (0.21, 0.22), -170, 190, 20)]],
    [[(0.28, 0.12), (0.72, 0.12), (0.45, 0.9)], [(0.36, 0.5), (0.7, 0.5)]],
    [arc((0.5, 0.3), (0.18, 0.2), 90, 450, 20), arc((0.5, 0.7), (0.21, 0.2), -90, 270, 20)],
    [[*arc((0.5, 0.32), (0.2, 0.22), 0, -360, 20), (0.7, 0.35), (0.62, 0.9)]],
]
