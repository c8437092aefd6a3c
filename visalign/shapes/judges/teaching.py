"""`shapes/clip` as a teacher: its embeddings tell a young judge what a caption means long before verdicts do."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from visalign.shapes.judges.clip import Clip, embed_images, tokenize
from visalign.shapes.judges.data import draw_description
from visalign.shapes.models import build_tokenizer
from visalign.shapes.render import render
from visalign.shapes.scenes import place

_EXAMPLES = 512


class Teacher:
    """Embeddings of captions and pictures, scaled to mean 0 and spread 1 in every number.

    Args:
        clip: an open_clip CLIP of the built-in world; embeddings are made, and stay, where it is.
        size: side of the pictures that it sees.
        seed: of the examples that give mean and spread.
    """

    def __init__(self, clip: Clip, size: int, seed: int) -> None:
        self.clip, self.tokenizer = clip, build_tokenizer()
        self.device: torch.device = clip.text_projection.device
        rng = Random(f"{seed} teacher")
        described = [draw_description(rng) for _ in range(_EXAMPLES)]
        scenes = [place(description, rng) for description in described]
        self._texts = _moments(self._read([d.caption for d in described]))
        self._images = _moments(self._see(render(scenes, size, rng.getrandbits(62))))

    def texts(self, captions: Sequence[str]) -> Tensor:
        """(N, D) of N captions."""
        mean, spread = self._texts
        return (self._read(captions) - mean) / spread

    def images(self, pixels: Tensor) -> Tensor:
        """(N, D) of pictures (N, 3, S, S) in [0, 1]."""
        mean, spread = self._images
        return (self._see(pixels) - mean) / spread

    @torch.no_grad()
    def _read(self, captions: Sequence[str]) -> Tensor:
        known = sorted(set(captions))
        places = {caption: i for i, caption in enumerate(known)}
        found = F.normalize(self.clip.encode_text(tokenize(self.tokenizer, known).to(self.device)), dim=-1)
        return found[[places[caption] for caption in captions]]

    @torch.no_grad()
    def _see(self, pixels: Tensor) -> Tensor:
        return embed_images(self.clip, pixels.to(self.device))


def _moments(found: Tensor) -> tuple[Tensor, Tensor]:
    return found.mean(0), found.std(0)
