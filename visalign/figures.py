"""Pictures for a README: a curve of held-out scores, and the same prompts and seeds before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from visalign.charts import Point, padded, ticks

INK, FAINT = (40, 40, 40), (210, 210, 210)
COLOURS = (
    (31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207),
    (140, 86, 75), (227, 119, 194), (127, 127, 127), (160, 160, 20), (20, 20, 120), (0, 90, 60),
)  # fmt: skip
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 320, 48, 28, 12
LEGEND = 180
THUMB, CAPTION = 96, 30


def curves(series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Lines of (minutes, score) by name, as a PNG; the names stand beside them, the highest end first."""
    points = [p for line in series.values() for p in line]
    left, right = 0.0, max(max(x for x, _ in points), 1e-6)
    low, high = padded(min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - 12)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    image = Image.new("RGB", (WIDTH + LEGEND, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for y in ticks(low, high, 6):
        pen.line([place(left, y), place(right, y)], FAINT)
        pen.text((6, place(left, y)[1] - 6), f"{y:g}", INK)
    for x in ticks(left, right, 8):
        pen.text((place(x, low)[0] - 6, HEIGHT - BOTTOM + 6), f"{x:g} min", INK)
    for number, (name, line) in enumerate(sorted(series.items(), key=lambda item: -item[1][-1][1])):
        colour = COLOURS[number % len(COLOURS)]
        pen.line([place(x, y) for x, y in line], colour, width=2)
        pen.text((WIDTH, TOP + 16 * number), name, colour)
    image.save(path, optimize=True)


def before_and_after(run: Path, path: Path, count: int = 8) -> None:
    """The first and the last samples of a run in two rows, as a PNG; a frame says whether the verifier agrees."""
    steps = sorted((run / "samples").glob("step_*"))
    sheet = Image.new("RGB", (count * (THUMB + 6) + 6, 2 * (THUMB + 6) + CAPTION), "white")
    pen = ImageDraw.Draw(sheet)
    for row, folder in enumerate((steps[0], steps[-1])):
        entries = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        for column, entry in enumerate(entries[:count]):
            x, y = 6 + column * (THUMB + 6), 6 + row * (THUMB + 6)
            with Image.open(folder / entry["file"]) as picture:
                sheet.paste(picture.convert("RGB").resize((THUMB, THUMB), Image.Resampling.LANCZOS), (x, y))
            right = entry["scores"].get("shapes/strict")
            if right is not None:
                pen.rectangle([x - 2, y - 2, x + THUMB + 1, y + THUMB + 1], outline=COLOURS[2 if right else 1], width=2)
            if row == 1:
                words = entry["prompt"].split()
                middle = (len(words) + 1) // 2
                pen.text((x, y + THUMB + 4), " ".join(words[:middle]) + "\n" + " ".join(words[middle:]), INK, spacing=1)
    sheet.save(path, optimize=True)
