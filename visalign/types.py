"""The values that pass between rooms: Prompts, Conditioning, Trajectory, Media, Scores.

Sizes: B rows of a batch, T denoising steps, S the latent shape of one sample (any rank), F frames, C channels, H and W
pixels. Everything that carries a likelihood or a score is float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def stable_id(text: str) -> int:
    """A 63-bit integer that names a text: the same on every machine, process and run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Prompts:
    """What is asked: P texts with their columns.

    Attributes:
        texts: the prompts.
        columns: one mapping a prompt with all else its row held (GenEval's `tag` and `include`, a target text, …).
        images: conditioning images (C, H, W) in [0, 1] for pipelines that edit or animate; empty otherwise.
    """

    texts: tuple[str, ...]
    columns: tuple[Mapping[str, Any], ...] = ()
    images: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", tuple({} for _ in self.texts))
        if len(self.columns) != len(self.texts):
            raise ValueError(f"{len(self.texts)} prompts came with {len(self.columns)} rows of columns; give one each")
        if self.images and len(self.images) != len(self.texts):
            raise ValueError(f"{len(self.texts)} prompts came with {len(self.images)} images; give one each, or none")

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    @property
    def ids(self) -> tuple[int, ...]:
        """Stable 63-bit ids; the noise of a sample depends on them and on nothing about the batch."""
        return tuple(stable_id(str(c.get("id", t))) for t, c in zip(self.texts, self.columns, strict=True))

    def take(self, rows: Sequence[int]) -> Prompts:
        """The prompts at `rows`, in that order; rows may repeat."""
        images = tuple(self.images[r] for r in rows) if self.images else ()
        return Prompts(tuple(self.texts[r] for r in rows), tuple(self.columns[r] for r in rows), images)

    def repeat(self, count: int) -> Prompts:
        """Each prompt `count` times, contiguous: the rows of a group stand together."""
        return self.take([r for r in range(len(self)) for _ in range(count)])


@dataclass(frozen=True)
class Conditioning:
    """All that the denoiser is told besides the state: the arguments of one pipeline call for B rows.

    Attributes:
        prompts: the B rows.
        guidance_scale: classifier-free (or embedded) guidance of the call; 1 is none.
        call: arguments of the pipeline call that do not depend on the row (height, width, num_frames, …).
        tensors: batch-first arguments, tensors (B, …) or lists of B. With `prompt_embeds` among them the texts are not
            encoded again.
    """

    prompts: Prompts
    guidance_scale: float = 1.0
    call: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Sequence[int]) -> Conditioning:
        """The conditioning of the chosen rows."""
        tensors = {k: v[list(rows)] if isinstance(v, Tensor) else [v[r] for r in rows] for k, v in self.tensors.items()}
        return Conditioning(self.prompts.take(rows), self.guidance_scale, self.call, tensors)


@dataclass(frozen=True)
class Levels:
    """The noise levels of one run, read after the pipeline has set them: x = a·x0 + s·ε.

    Attributes:
        a: signal coefficients, (T+1,) float64, the last one is the clean end.
        s: noise coefficients, (T+1,) float64, falling.
        timesteps: what the denoiser is told, (T,).
        prediction: what the denoiser returns: `flow` (ε − x0), `reverse_flow` (x0 − ε), `epsilon`, `v_prediction` or
            `sample`.
        scaled_input: the denoiser sees x/√(1+s²) (variance-exploding schedulers); `v_prediction` refers to that.
    """

    a: Tensor
    s: Tensor
    timesteps: Tensor
    prediction: str
    scaled_input: bool = False

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def sigma(self) -> Tensor:
        """Noise levels on the rectified-flow path, s/(a+s), (T+1,) in [0, 1]."""
        return self.s / (self.a + self.s)


@dataclass(frozen=True)
class Step:
    """One recorded step of a trajectory.

    Attributes:
        index: position in the run, 0 is the noisiest.
        x: state before, (B, *S) float32, as the scheduler saw it.
        x_next: state after, (B, *S) float32; None where the step was deterministic and nobody asked for it.
        loop: state before as the pipeline's loop holds it, (B, *S'); the same tensor as `x` for most pipelines.
        log_prob: (B,) float32 of x_next given x under the weights that acted; None for deterministic steps.
        mean: (B, *S) of the acting policy's transition; kept only when asked for.
    """

    index: int
    x: Tensor
    x_next: Tensor | None
    loop: Tensor
    log_prob: Tensor | None = None
    mean: Tensor | None = None

    def take(self, rows: Tensor) -> Step:
        """The chosen rows."""
        pick = [None if v is None else v[rows] for v in (self.x, self.x_next, self.loop, self.log_prob, self.mean)]
        x, x_next, loop, log_prob, mean = pick
        assert x is not None
        assert loop is not None
        return Step(self.index, x, x_next, loop, log_prob, mean)


@dataclass(frozen=True)
class Trajectory:
    """What a rollout leaves behind: the end, and only those steps that are trained.

    Attributes:
        x0: final loop state, (B, *S) float32.
        steps: the kept steps, in order of time.
        levels: the noise levels of the run.
    """

    x0: Tensor
    steps: tuple[Step, ...]
    levels: Levels

    def __len__(self) -> int:
        return len(self.x0)

    def take(self, rows: Tensor) -> Trajectory:
        """The chosen rows of every tensor."""
        return Trajectory(self.x0[rows], tuple(s.take(rows) for s in self.steps), self.levels)


@dataclass(frozen=True)
class Media:
    """Decoded output.

    Attributes:
        pixels: (B, F, C, H, W) in [0, 1] float32; an image is a video of one frame.
        fps: frames a second; 0 for images.
    """

    pixels: Tensor
    fps: float = 0.0

    def __post_init__(self) -> None:
        if self.pixels.ndim != 5:
            shape = tuple(self.pixels.shape)
            raise ValueError(f"media are (B, F, C, H, W), but {shape} came; use Media.of_images for images")

    def __len__(self) -> int:
        return len(self.pixels)

    @staticmethod
    def of_images(images: Tensor) -> Media:
        """Media of one frame from images (B, C, H, W) in [0, 1]."""
        return Media(images.unsqueeze(1))

    @property
    def images(self) -> Tensor:
        """First frames, (B, C, H, W)."""
        return self.pixels[:, 0]

    def take(self, rows: Sequence[int] | Tensor) -> Media:
        """The chosen rows."""
        return Media(self.pixels[torch.as_tensor(rows, dtype=torch.long)], self.fps)


@dataclass(frozen=True)
class Scores:
    """What rewards say of media.

    Attributes:
        values: (B,) float32, greater is better; meaningless where invalid.
        components: name → (B,) float32, every part before weighting.
        valid: (B,) bool; a judgement that failed is invalid, never 0.
    """

    values: Tensor
    components: Mapping[str, Tensor] = field(default_factory=dict)
    valid: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        if self.valid.numel() == 0:
            object.__setattr__(self, "valid", torch.ones(len(self.values), dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Tensor) -> Scores:
        """The chosen rows."""
        return Scores(self.values[rows], {k: v[rows] for k, v in self.components.items()}, self.valid[rows])


class InputError(ValueError):
    """The user's input is wrong; the command line prints the message alone and exits with 2."""


class RunError(RuntimeError):
    """The run failed for a reason that the message names; the command line exits with 1."""
