"""Experience from given media: pairs for the preference family, captioned media for supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from visalign.config import RunConfig
from visalign.data import Captioned, Pairs, read_captioned, read_pairs
from visalign.experience import Actors, Batch, Experience, conditioning_of
from visalign.layout import Layout
from visalign.methods.base import MediaMethod, Method, PairMethod
from visalign.types import InputError, Media, Prompts, Trajectory


@dataclass(frozen=True)
class Given:
    """Media that a method learns from, encoded when their turn comes.

    Attributes:
        prompts: one a sample or pair; `columns["row"]` is its place in the data.
        source: the data.
    """

    prompts: Prompts
    source: Captioned | Pairs

    def collect(self, actors: Actors, layout: Layout) -> Experience:
        """The clean latents of this process's rows, as micro-batches."""
        return Experience(tuple(self.batch(actors, layout, rows) for rows in layout.micro_batches()), {})

    def batch(self, actors: Actors, layout: Layout, rows: tuple[int, ...]) -> Batch:
        """One micro-batch; the rows of a pair (chosen, rejected) share their noise."""
        config, pipeline = actors.config, actors.pipeline
        conditioning = conditioning_of(config, layout, rows)
        groups = layout.groups[list(rows)]
        seeds = layout.seeds(rows, config.seed, "given", per_group=True)
        with torch.no_grad():
            x0 = pipeline.encode(conditioning, self.media(actors, layout, rows), seeds)
        levels = pipeline.levels(conditioning, config.rollout.num_steps)
        return Batch(rows, conditioning, Trajectory(x0, (), levels), self.labels(rows), groups, tuple(seeds))

    def media(self, actors: Actors, layout: Layout, rows: tuple[int, ...]) -> Media:
        """The pixels of rows, in the model's size."""
        places = [int(c["row"]) for c in layout.row_prompts(rows).columns]
        size, frames = media_size(actors), int(actors.config.model.call.get("num_frames", 1))
        if isinstance(self.source, Captioned):
            return self.source.load(places, size, frames)
        chosen = [r % 2 == 0 for r in rows]
        return self.source.load(places, chosen, size, frames)

    def labels(self, rows: tuple[int, ...]) -> Tensor:
        """+1 for chosen rows and single samples, −1 for rejected rows, (B,)."""
        if isinstance(self.source, Captioned):
            return torch.ones(len(rows))
        return torch.tensor([1.0 if r % 2 == 0 else -1.0 for r in rows])


def media_size(actors: Actors) -> tuple[int, int]:
    """Height and width of the model's media: the config's own, or the pipeline's default."""
    call, pipe = actors.config.model.call, actors.pipeline.pipe
    default = pipe.default_sample_size * pipe.vae_scale_factor if "height" not in call or "width" not in call else 0
    return int(call.get("height", default)), int(call.get("width", default))


def open_given(config: RunConfig, method: Method) -> Given | None:
    """The data of a method that learns from given media; None for the others.

    Raises:
        InputError: the method needs data and the config names none, or the data are empty.
    """
    if not isinstance(method, PairMethod | MediaMethod):
        return None
    if config.data is None:
        raise InputError("this method learns from given media; set data to a folder with captions or a file of pairs")
    source = read_pairs(Path(config.data)) if isinstance(method, PairMethod) else read_captioned(Path(config.data))
    columns = tuple(dict(c, row=place) for place, c in enumerate(source.columns))
    return Given(Prompts(source.texts, columns), source)
