"""Alarms of reward hacking and of a sick run: pixel statistics, diversity within groups, and what watches them.

Reward hacking shows in the pixels before it shows in a curve: backgrounds go dark, colours saturate, the grid of the
patches and of the VAE appears (flow_grpo issues 23, 92 and 233; UniRL issue 407, dark share 0.45 → 0.93 with a rising
reward). All numbers here are cheap enough to be taken at every iteration.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from visalign.section import nearest
from visalign.types import InputError, Media

if TYPE_CHECKING:
    from visalign.config import MonitorConfig

State: TypeAlias = dict[str, Any]

DARK = 0.1
"""Luma below which a pixel counts as dark."""
GRID_PERIODS = (2, 4, 8, 16)
"""Periods of patch and VAE grids, in pixels."""
MAX_CLIP_FRACTION = 0.5
"""Share of clipped samples above which the policy is moving further than its data can tell."""
ALARMS = ("held_out_drop", "diversity", "reward_std", "zero_std", "pixels", "kl", "clip_fraction")
"""Every alarm by name."""


def pixel_statistics(media: Media) -> dict[str, Tensor]:
    """What hacked images betray themselves by.

    Args:
        media: B images or videos; of a video every statistic is the mean over its frames.

    Returns:
        Name → (B,) float32, each in [0, 1]: `dark`, the share of pixels with a luma below 0.1; `saturation`, the mean
        HSV saturation; `high_frequency`, the share of the spectral energy above half of the Nyquist frequency; `grid`,
        the share of the contrast (root of the energy) that stands out at the periods of patch and VAE grids.

    Example:
        >>> grey = Media.of_images(torch.full((1, 3, 32, 32), 0.5))
        >>> {name: float(value) for name, value in pixel_statistics(grey).items()}
        {'dark': 0.0, 'saturation': 0.0, 'high_frequency': 0.0, 'grid': 0.0}
    """
    rows, frames = media.pixels.shape[:2]
    pixels = media.pixels.detach().float().flatten(0, 1)
    luma = _luma(pixels)
    power = _power(luma)
    values = {
        "dark": (luma < DARK).float().mean((1, 2)),
        "saturation": _saturation(pixels),
        "high_frequency": _high_frequency(power),
        "grid": _grid(_power(_whole_periods(luma))),
    }
    return {name: value.view(rows, frames).mean(1) for name, value in values.items()}


def _luma(pixels: Tensor) -> Tensor:
    if pixels.shape[1] != 3:
        return pixels.mean(1)
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)


def _saturation(pixels: Tensor) -> Tensor:
    high, low = pixels.amax(1), pixels.amin(1)
    return ((high - low) / high.clamp_min(1e-3)).mean((1, 2))


def _power(luma: Tensor) -> Tensor:
    # Spectral energy a pixel without the mean, (N, H, W); a thousandth of grey level is the floor below it.
    power = torch.fft.fft2(luma - luma.mean((1, 2), keepdim=True)).abs().square()
    return power / power[0].numel() ** 2


def _floor(power: Tensor) -> Tensor:
    return power.sum((1, 2)).clamp_min(1e-6)


def _high_frequency(power: Tensor) -> Tensor:
    y, x = (torch.fft.fftfreq(n, device=power.device) for n in power.shape[1:])
    return (power * (torch.hypot(y[:, None], x) > 0.25)).sum((1, 2)) / _floor(power)


def _whole_periods(luma: Tensor) -> Tensor:
    # Cut to a multiple of 16 px, so that every period falls on one frequency; smaller images stay as they are.
    height, width = (n - n % GRID_PERIODS[-1] if n >= GRID_PERIODS[-1] else n for n in luma.shape[1:])
    return luma[:, :height, :width]


def _grid(power: Tensor) -> Tensor:
    excess = torch.zeros_like(power[:, 0, 0])
    for y, x in _grid_frequencies(*power.shape[1:]):
        dy, dx = (y > 0) - (y < 0), (x > 0) - (x < 0)
        beside = (power[:, y - dy, x - dx] + power[:, (y + dy) % power.shape[1], (x + dx) % power.shape[2]]) / 2
        excess = excess + (power[:, y, x] - beside).clamp_min(0)
    return (excess / _floor(power)).sqrt()


def _grid_frequencies(height: int, width: int) -> list[tuple[int, int]]:
    # Columns, rows and both diagonals of each period that fits; the conjugate half counts too, so energy is whole.
    points = set()
    for period in GRID_PERIODS:
        ys = [height // period, -(height // period)] if height % period == 0 else []
        xs = [width // period, -(width // period)] if width % period == 0 else []
        points |= {(y % height, 0) for y in ys} | {(0, x % width) for x in xs}
        points |= {(y % height, x % width) for y, x in itertools.product(ys, xs)}
    return [(_signed(y, height), _signed(x, width)) for y, x in sorted(points) if (y, x) != (0, 0)]


def _signed(index: int, size: int) -> int:
    return index if index <= size // 2 else index - size


def group_diversity(media: Media, groups: Tensor) -> float:
    """Mean pairwise distance within groups: root mean square over the pixels, scaled down to at most 16 × 16.

    Args:
        media: B images or videos in [0, 1].
        groups: (B,) integer ids; a group of one has no pair and does not count.

    Returns:
        The mean over the groups of each one's mean distance; 0 where no group has two members.

    Example:
        >>> pair = Media.of_images(torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.5)]))
        >>> group_diversity(pair, torch.tensor([7, 7])), group_diversity(pair, torch.tensor([7, 8]))
        (0.5, 0.0)
    """
    pixels = media.pixels.detach().float()
    side = min(16, *pixels.shape[-2:])
    small = adaptive_avg_pool2d(pixels.flatten(0, 1), side).view(len(pixels), -1)
    distances = [_mean_distance(small[groups == g]) for g in groups.unique() if int((groups == g).sum()) > 1]
    return sum(distances) / max(1, len(distances))


def _mean_distance(rows: Tensor) -> float:
    return float(torch.pdist(rows).mean() / rows.shape[1] ** 0.5)


@dataclass(frozen=True)
class Alarm:
    """Something that looks wrong: one of `ALARMS`, what was seen, and when."""

    name: str
    message: str
    iteration: int

    def row(self) -> State:
        """The line of metrics.jsonl."""
        return {"kind": "alarm", "iteration": self.iteration, "name": self.name, "message": self.message}


class Monitor:
    """Watches the metrics of a run and raises each alarm once, again only after it went away.

    The first row that holds a number is the base it is compared with. Rewards of the train rows (`reward/<name>`) are
    the trained ones; every other `eval/<name>` is held out.

    Args:
        config: thresholds and the alarms that stop the run.

    Raises:
        InputError: `stop_on` names an alarm that does not exist.
    """

    def __init__(self, config: MonitorConfig) -> None:
        for name in config.stop_on:
            if name not in ALARMS:
                known = ", ".join(ALARMS)
                raise InputError(f"monitor.stop_on: unknown alarm {name!r}.{nearest(name, ALARMS)} Known: {known}")
        self.config = config
        self._first: dict[str, float] = {}
        self._best: dict[
            str, dict[str, dict[str, float]]
        ] = {}  # number of prompts → reward → the evaluation it was best in
        self._trained: list[str] = []
        self._active: list[str] = []

    def observe(self, row: State) -> list[Alarm]:
        """The alarms that one row of metrics newly raises; rows that are neither `train` nor `eval` raise none."""
        seen = {"train": self._train, "eval": self._eval}
        found = seen[row["kind"]](row) if row["kind"] in seen else []
        watched = {"held_out_drop"} if row["kind"] == "eval" else set(ALARMS) - {"held_out_drop"}
        new = [Alarm(name, text, row["iteration"]) for name, text in found if name not in self._active]
        if row["kind"] in seen:
            self._active = sorted((set(self._active) - watched) | {name for name, _ in found})
        return new

    def stops(self, alarms: Sequence[Alarm]) -> bool:
        """Whether one of the alarms is listed in `stop_on`."""
        return any(a.name in self.config.stop_on for a in alarms)

    def state(self) -> State:
        """All that was remembered, as plain JSON."""
        return {"first": self._first, "best": self._best, "trained": self._trained, "active": self._active}

    def restore(self, state: State) -> None:
        """Go on from a `state()`."""
        self._first, self._best = dict(state["first"]), {count: dict(best) for count, best in state["best"].items()}
        self._trained, self._active = list(state["trained"]), list(state["active"])

    def _train(self, row: State) -> list[tuple[str, str]]:
        self._trained = sorted({*self._trained, *(k.removeprefix("reward/") for k in row if k.startswith("reward/"))})
        for key, value in row.items():
            if key in ("diversity", "reward_std") or key.startswith("pixels/"):
                self._first.setdefault(key, value)
        return [*self._shrunk(row), *self._pixels(row), *self._exceeded(row)]

    def _shrunk(self, row: State) -> list[tuple[str, str]]:
        shares = {"diversity": self.config.min_diversity, "reward_std": self.config.min_reward_std}
        return [
            (key, f"{key} {row[key]:.4g} is below {share:.0%} of its first value {self._first[key]:.4g}: {_COLLAPSE}")
            for key, share in shares.items()
            if key in row and row[key] < share * self._first[key]
        ]

    def _pixels(self, row: State) -> list[tuple[str, str]]:
        drift = {k: row[k] - v for k, v in self._first.items() if k.startswith("pixels/") and k in row}
        far = [k for k, d in drift.items() if abs(d) > self.config.max_pixel_drift]
        moved = ", ".join(f"{k.removeprefix('pixels/')} {self._first[k]:.3f} → {row[k]:.3f}" for k in sorted(far))
        return [("pixels", f"pixel statistics drift from the base: {moved}. Look at the samples")] if far else []

    def _exceeded(self, row: State) -> list[tuple[str, str]]:
        limits = {
            "zero_std": ("zero_std_ratio", self.config.max_zero_std, "groups give no signal; vary prompts or rewards"),
            "kl": ("kl", self.config.max_kl, "the policy is far from the reference; raise beta or lower the lr"),
            "clip_fraction": ("clip_fraction", MAX_CLIP_FRACTION, "most samples are clipped; lower the lr or updates"),
        }
        return [
            (name, f"{key} {row[key]:.4g} is above {limit:.4g}: {advice}")
            for name, (key, limit, advice) in limits.items()
            if limit is not None and key in row and row[key] > limit
        ]

    def _eval(self, row: State) -> list[tuple[str, str]]:
        # Keys eval/<reward> alone are means; eval/<reward>/ci and the categories have one slash more.
        means = {k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/") and k.count("/") == 1}
        # Evaluations of another number of prompts are another measurement: they have a best of their own.
        best = self._best.setdefault(str(row.get("prompts", "all")), {})
        dropped = [n for n in means if n not in self._trained and self._dropped(n, means, best.get(n, means))]
        lost = ", ".join(f"{n} {best[n][n]:.4g} → {means[n]:.4g}" for n in dropped)
        best |= {n: means for n in means if n not in best or means[n] > best[n][n]}
        return [("held_out_drop", f"held-out rewards fall while the trained rise: {lost}")] if dropped else []

    def _dropped(self, name: str, means: dict[str, float], best: dict[str, float]) -> bool:
        # Whether a reward fell from its best while the trained ones rose since that evaluation.
        rise = sum(means[n] - best[n] for n in self._trained if n in means and n in best)
        return best[name] - means[name] > self.config.held_out_drop and rise > 0


_COLLAPSE = "samples of a prompt grow alike; lower the lr, add a KL term or stop earlier"
