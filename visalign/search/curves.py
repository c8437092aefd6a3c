"""Curves of a search: the best so far against what was spent, averaged over prompts, as charts and as one picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from visalign.charts import Chart, Series, draw

Point = Mapping[str, float]
"""`model_calls`, and the scores of the best candidate by then: `value` and every reward, NaN where not judged."""
Curve = Sequence[Point]

SCALE = 2
_INK, _FAINT, _GROUND = "#1c2024", "#667079", "#ffffff"
_COLORS = ("#2563c9", "#d9622b", "#12805c", "#9b3fb5", "#b58a00", "#0e8fa8", "#c93a6d", "#6b6f76")


def averaged(curves: Sequence[Curve]) -> Curve:
    """The mean of step functions, from where all of them are known.

    Args:
        curves: one a prompt, `model_calls` rising.

    Example:
        >>> one = [{"model_calls": 4, "value": 0.0}, {"model_calls": 8, "value": 1.0}]
        >>> averaged([one, [{"model_calls": 4, "value": 0.5}]])
        [{'model_calls': 4, 'value': 0.25}, {'model_calls': 8, 'value': 0.75}]
    """
    start = max(curve[0]["model_calls"] for curve in curves)
    grid = sorted({point["model_calls"] for curve in curves for point in curve if point["model_calls"] >= start})
    places = [0] * len(curves)
    result = []
    for calls in grid:
        for row, curve in enumerate(curves):
            while places[row] + 1 < len(curve) and curve[places[row] + 1]["model_calls"] <= calls:
                places[row] += 1
        held = [curve[place] for curve, place in zip(curves, places, strict=True)]
        names = [name for name in held[0] if name != "model_calls"]
        result.append({"model_calls": calls} | {name: _mean([point[name] for point in held]) for name in names})
    return result


def _mean(values: Sequence[float]) -> float:
    judged = [v for v in values if not math.isnan(v)]
    return sum(judged) / len(judged) if judged else math.nan


def charts(curves: Mapping[str, Curve], names: Sequence[str]) -> list[Chart]:
    """A chart of each score, with a line of each method.

    Args:
        curves: method → its curve.
        names: scores to draw.
    """
    plots = []
    for name in names:
        lines = {
            method: [(p["model_calls"], p[name]) for p in curve if not math.isnan(p[name])]
            for method, curve in curves.items()
        }
        series = [Series(method, _stairs(points), dots=len(points) == 1) for method, points in lines.items() if points]
        if series:
            plots.append(draw(name, series, "best so far, by model calls a prompt"))
    return plots


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    # A best so far holds until the next one.
    corners = [(x, y) for (_, y), (x, _) in itertools.pairwise(points)]
    return [points[0], *(corner for pair in zip(corners, points[1:], strict=True) for corner in pair)]


def picture(plots: Sequence[Chart]) -> Image.Image:
    """The charts below each other.

    Args:
        plots: at least one.
    """
    head = 22
    height = sum(plot.height + head for plot in plots)
    image = Image.new("RGB", (SCALE * plots[0].width, SCALE * height), _GROUND)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(SCALE * 11)
    top = 0
    for plot in plots:
        pen.text((SCALE * plot.left, SCALE * (top + 5)), f"{plot.title}: {plot.note}", fill=_INK, font=font)
        _draw(pen, plot, top + head, font)
        top += plot.height + head
    return image


def _draw(pen: ImageDraw.ImageDraw, plot: Chart, top: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    def at(x: float, y: float) -> tuple[float, float]:
        return SCALE * x, SCALE * (top + y)

    pen.line([at(plot.left, plot.bottom), at(plot.right, plot.bottom)], fill=_FAINT, width=SCALE)
    for x, label in plot.x_ticks:
        pen.text(at(x, plot.bottom + 4), label, fill=_FAINT, font=font, anchor="ma")
    for y, label in plot.y_ticks:
        pen.text(at(plot.left - 6, y), label, fill=_FAINT, font=font, anchor="rm")
        pen.line([at(plot.left, y), at(plot.right, y)], fill="#e3e6e8", width=1)
    for row, line in enumerate(plot.lines):
        points = [tuple(map(float, p.split())) for p in line.path.removeprefix("M").split(" L")]
        pen.line([at(x, y) for x, y in points], fill=_COLORS[line.color], width=2 * SCALE, joint="curve")
        legend = f"{line.name} {line.last}"
        pen.text(at(plot.right, plot.bottom - 14 * (row + 1)), legend, fill=_COLORS[line.color], font=font, anchor="ra")
