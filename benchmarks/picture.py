"""Accuracy against speed, one dot a sorter: an SVG that looks right on a light and on a dark page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from math import ceil, floor, hypot, log10

WIDTH, HEIGHT = 780, 480
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 64, 56
KINDS = {  # in the order in which labels find their place, and of the legend
    "ours": "accm",
    "peer": "other sorters, at their defaults",
    "baseline": "baseline, told the number of units",
    "ablation": "accm without one stage",
}
RADIUS = {"ours": 8.0, "peer": 5.5, "baseline": 5.5, "ablation": 4.5}
FONT_SIZE = {"ours": 16.0, "peer": 13.0, "baseline": 13.0, "ablation": 11.5}
LETTER, BOLD_LETTER = 0.54, 0.72  # width of an average letter, in font sizes
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
DISTANCES = (5, 16, 30, 46, 64)
GAP = 4  # between labels side by side
NEAR = 10  # labels farther from their dot than this get a line to it
STYLE = """
.page { fill: #ffffff; stroke: #d1d9e0 } .grid { stroke: #e6eaef } .leader { stroke: #9198a1 }
text { font-family: -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
text { paint-order: stroke; stroke: #ffffff; stroke-width: 3; stroke-linejoin: round }
.quiet { fill: #59636e }
.ours { fill: #0969da } .peer { fill: #bc4c00 } .baseline { fill: #6e7781 }
.ablation { fill: #ffffff; stroke: #0969da; stroke-width: 1.8 }
text.ours { font-weight: 600 } text.ablation { fill: #0969da; stroke: #ffffff; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; stroke: #3d444d } .grid { stroke: #262c36 } .leader { stroke: #656c76 }
text { stroke: #0d1117 }
.quiet { fill: #9198a1 }
.ours { fill: #4493f8 } .peer { fill: #f0883e } .baseline { fill: #9198a1 }
.ablation { fill: #0d1117; stroke: #4493f8 }
text.ablation { fill: #4493f8; stroke: #0d1117 }
}"""

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Dot:
    """A sorter: accuracy from 0 to 1, speed in times real time, and one of ``KINDS``."""

    name: str
    accuracy: float
    speed: float
    kind: str


def draw_accuracy_speed(dots: Sequence[Dot], subtitle: str) -> str:
    """Draw the picture; speed on a logarithmic scale."""
    speeds, shares = speed_ticks([dot.speed for dot in dots]), accuracy_ticks([dot.accuracy for dot in dots])

    def place(speed: float, accuracy: float) -> tuple[float, float]:
        along = (log10(speed) - log10(speeds[0])) / (log10(speeds[-1]) - log10(speeds[0]))
        up = (100 * accuracy - shares[0]) / (shares[-1] - shares[0])
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>Accuracy against speed: {escape(subtitle)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
    ]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for speed in speeds:
        x, _ = place(speed, 0)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 18, f"{speed:g}×", "quiet", 12, "middle"))
    for share in shares:
        _, y = place(speeds[0], share / 100)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{share} %", "quiet", 12, "end"))
    parts.append(
        _text(
            (LEFT + right) / 2, HEIGHT - 14, f"speed, times real time ({subtitle})", "quiet", 12.5, "middle"
        )
    )
    parts.append(_text(LEFT - 40, 26, "accuracy, mean over the simulated sets", "quiet", 12.5, "start"))
    parts += _draw_legend([kind for kind in KINDS if any(dot.kind == kind for dot in dots)])

    ordered = sorted(dots, key=lambda dot: list(KINDS).index(dot.kind))
    centers = [place(dot.speed, dot.accuracy) for dot in ordered]
    boxes = place_labels(ordered, centers)
    for (x, y), box in zip(centers, boxes, strict=True):
        near_x, near_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if hypot(near_x - x, near_y - y) > NEAR + max(RADIUS.values()):
            parts.append(
                f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>'
            )
    # ours comes last, on top
    for dot, (x, y), box in reversed(list(zip(ordered, centers, boxes, strict=True))):
        parts.append(f'<circle class="{dot.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS[dot.kind]}"/>')
        beside = (box[0], "start") if box[0] > x else (box[2], "end")
        at, anchor = ((box[0] + box[2]) / 2, "middle") if box[0] < x < box[2] else beside
        size = FONT_SIZE[dot.kind]
        parts.append(_text(at, box[3] - 0.25 * size, label_of(dot), dot.kind, size, anchor))
    return "\n".join([*parts, "</svg>", ""])


def label_of(dot: Dot) -> str:
    return dot.name.removeprefix("accm-").replace("-", " ") if dot.kind == "ablation" else dot.name


def speed_ticks(speeds: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, ... around the speeds, with some room."""
    low, high = min(speeds) / 1.2, max(speeds) * 1.2
    decades = range(floor(log10(low)) - 1, ceil(log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    first = max(k for k, tick in enumerate(ticks) if tick <= low)
    last = min(k for k, tick in enumerate([*ticks, 10 * ticks[-1]]) if tick >= high)
    return ticks[first : last + 1]


def accuracy_ticks(accuracies: Sequence[float]) -> list[int]:
    """Tens of percent around the accuracies."""
    low = max(0, 10 * floor(10 * min(accuracies) - 0.3))
    high = min(100, 10 * ceil(10 * max(accuracies) + 0.3))
    return list(range(low, high + 1, 10))


def place_labels(dots: Sequence[Dot], centers: Sequence[tuple[float, float]]) -> list[Box]:
    """Boxes of the labels, beside their dots and clear of all else where there is room."""
    taken = [
        (x - r - 1, y - r - 1, x + r + 1, y + r + 1)
        for dot, (x, y) in zip(dots, centers, strict=True)
        for r in [RADIUS[dot.kind]]
    ]
    boxes = []
    for dot, (x, y) in zip(dots, centers, strict=True):
        size = FONT_SIZE[dot.kind]
        letter = BOLD_LETTER if dot.kind == "ours" else LETTER
        width, height = letter * size * len(label_of(dot)), 1.15 * size
        candidates = []
        for distance, (across, down) in product(DISTANCES, DIRECTIONS):
            gap = RADIUS[dot.kind] + distance
            center_x = x + across * (gap + width / 2)
            center_y = y + down * (gap + height / 2)
            candidates.append(
                (center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2)
            )
        box = next((box for box in candidates if _is_free(box, taken)), candidates[0])
        boxes.append(box)
        taken.append(box)
    return boxes


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    inside = box[0] > LEFT and box[1] > TOP and box[2] < WIDTH - RIGHT and box[3] < HEIGHT - BOTTOM
    return inside and not any(
        box[0] < other[2] + GAP and other[0] < box[2] + GAP and box[1] < other[3] and other[1] < box[3]
        for other in taken
    )


def _draw_legend(kinds: Sequence[str]) -> list[str]:
    parts, x = [], LEFT - 35.0
    for kind in kinds:
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="46" r="5"/>')
        parts.append(_text(x + 10, 50, KINDS[kind], "quiet", 12, "start"))
        x += 34 + LETTER * 12 * len(KINDS[kind])
    return parts


def _text(x: float, y: float, words: str, kind: str, size: float, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
