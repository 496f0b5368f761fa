"""Draw the rooms of the three packages, floor by floor: docs/images/rooms.png.

A room is a sub-package or a module; its width is its lines. A room imports only rooms on the floors below it and the
packages below its own: the floors are those of tests/test_layers.py, which a test holds.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

from tests.test_layers import FLOORS

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/images/rooms.png"
PACKAGES = {"distill": "the mathematics and the models", "trainers": "training: Accelerate, ranks, files of a run"}
LAUNCH = {"commands": 1, "main": 2, "processes": 0, "options": 0, "checks": 0}
COLOURS = {"distill": "#d8e6f3", "trainers": "#f6dfd3", "launch": "#e2eed7"}
HEIGHT, GAP = 1.0, 0.25


def lines(package: str, room: str) -> int:
    """Return the lines of a room."""
    file = ROOT / package / f"{room}.py"
    files = [file] if file.exists() else (ROOT / package / room).rglob("*.py")
    return sum(len(one.read_text(encoding="utf-8").splitlines()) for one in files)


def main() -> None:
    """Draw and write the picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(figsize=(12, 13), layout="constrained")
    bottom = 0.0
    for package, table in {**FLOORS, "launch": LAUNCH}.items():
        floors = [[room for room, its in table.items() if its == floor] for floor in sorted(set(table.values()))]
        top = bottom + len(floors) * (HEIGHT + GAP) + GAP
        axes.add_patch(Rectangle((-0.3, bottom), 12.6, top - bottom, fill=False, edgecolor="grey"))
        axes.text(12.4, (bottom + top) / 2, package, rotation=90, va="center", weight="bold", size=13)
        for floor, rooms in enumerate(floors):
            sizes = {room: lines(package, room) for room in rooms}
            widths = {room: max(1.4, 12 * size / 5_000) for room, size in sizes.items()}
            left = (12 - sum(widths.values()) - 0.15 * (len(rooms) - 1)) / 2
            for room, width in widths.items():
                y = bottom + GAP + floor * (HEIGHT + GAP)
                axes.add_patch(Rectangle((left, y), width, HEIGHT, facecolor=COLOURS[package], edgecolor="black"))
                is_folder = (ROOT / package / room).is_dir()
                name = room + ("/" if is_folder else "")
                axes.text(left + width / 2, y + 0.58, name, ha="center", va="center", size=8)
                axes.text(
                    left + width / 2, y + 0.14, f"{sizes[room]:,}", ha="center", va="center", size=7, color="grey"
                )
                left += width + 0.15
        bottom = top + 0.5
    axes.set_xlim(-0.5, 12.9)
    axes.set_ylim(-0.3, bottom)
    axes.set_axis_off()
    axes.set_title("A room imports only rooms on the floors below it (lines of each beneath its name)", size=11)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
