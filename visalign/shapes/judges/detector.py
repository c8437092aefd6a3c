"""`shapes/detector`: an OWL-ViT of transformers for the shapes by name, its towers taken from `shapes/clip`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss
from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.clip import MEAN, STD, Clip, load_clip, normalised, tokenize
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import draw_scenes
from visalign.shapes.judges.learning import Trainer, fast
from visalign.shapes.judges.recipes import DetectorRecipe
from visalign.shapes.judges.towers import eyes_of, text_sizes, vision_sizes, words_of
from visalign.shapes.models import build_tokenizer
from visalign.shapes.reading import Found, read_objects
from visalign.shapes.render import render
from visalign.shapes.scenes import SHAPES

Owl = Any
"""An OwlViTForObjectDetection."""

_ASKED = "a photo of a {}"
"""How `geneval` asks for a class."""
_LIGHT = 0.5
_FOCUS = 2.0
"""Exponent of the focal loss."""
_SHARPNESS = 10.0
"""What the cosine of a patch and a class is multiplied with at the start."""


@dataclass(frozen=True)
class Batch:
    """Pictures and their objects.

    Attributes:
        pixels: (B, 3, S, S).
        found: the objects, each a shape.
    """

    pixels: Tensor
    found: Found


class Batches:
    """The batches of a training, by number."""

    def __init__(self, recipe: DetectorRecipe) -> None:
        self.recipe = recipe

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        recipe, rng = self.recipe, Random(f"{self.recipe.seed} detector {step}")
        _, scenes = draw_scenes(recipe.schedule.batch, rng)
        clean = render(scenes, recipe.size, rng.getrandbits(62))
        kinds, strength = draw_damage(len(scenes), recipe.damaged, rng.getrandbits(62))
        pixels = damage(vary(clean, rng.getrandbits(62)), kinds, _LIGHT * strength, rng.getrandbits(62))
        return Batch(pixels, read_objects(clean))


def build_detector(recipe: DetectorRecipe, clip: Clip) -> Owl:
    """Fresh heads from the recipe's seed on the CLIP's towers, the last layer of its eyes left out."""
    layers = len(clip.visual.transformer.resblocks) - 1
    text = text_sizes(clip)
    config = OwlViTConfig(
        text_config=text, vision_config=vision_sizes(clip, layers), projection_dim=text["hidden_size"]
    )
    torch.manual_seed(recipe.seed)
    owl = OwlViTForObjectDetection(config)
    eyes = {name.replace("pre_layrnorm", "pre_layernorm"): value for name, value in eyes_of(clip.visual, layers)}
    owl.owlvit.vision_model.load_state_dict(eyes, strict=False)
    owl.owlvit.text_model.load_state_dict(dict(words_of(clip)))
    owl.owlvit.text_model.requires_grad_(False)
    owl.owlvit.visual_projection.requires_grad_(False)  # serves retrieval, not detection
    owl.owlvit.logit_scale.requires_grad_(False)
    even_out(owl)
    return owl


@torch.no_grad()
def even_out(owl: Owl) -> None:
    """Let the heads keep the spread of what they read, and boxes start at their patches; OWL-ViT's have spread 1."""
    for head in (owl.class_head, owl.box_head):
        for linear in (m for m in head.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    nn.init.zeros_(owl.box_head.dense2.weight)
    nn.init.constant_(owl.class_head.logit_scale.bias, _SHARPNESS)


def predict(owl: Owl, pixels: Tensor, queries: Tensor, autocast: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, P, Q) and boxes (B, P, 4), middle and sides as fractions, of P patches for queries (Q, T)."""
    with fast(autocast):
        tokens, _ = owl.image_embedder(normalised(pixels))
    grid = tokens.float()  # (B, h, w, D)
    asked = owl.owlvit.text_projection(owl.owlvit.text_model(input_ids=queries).pooler_output)
    flat = grid.flatten(1, 2)
    logits, _ = owl.class_predictor(flat, asked.expand(len(pixels), -1, -1))
    return logits, owl.box_predictor(flat, grid)


def detection_loss(logits: Tensor, boxes: Tensor, found: Found, side: int, box_weight: float) -> Tensor:
    """Focal loss of the classes, and L1 and GIoU of the boxes, where the patch of an object's middle answers for it.

    Args:
        logits: (B, P, Q).
        boxes: (B, P, 4).
        found: the objects.
        side: patches of a side; P is its square.
        box_weight: of the boxes.
    """
    column, row = (found.center * side).long().clamp(0, side - 1).unbind(1)
    patch = row * side + column
    target = torch.zeros_like(logits)
    target[found.image, patch, found.shape] = 1
    classes = sigmoid_focal_loss(logits, target, alpha=0.5, gamma=_FOCUS, reduction="sum")
    predicted, wanted = boxes[found.image, patch], torch.cat([found.center, found.extent], dim=1)
    corners = (box_convert(b, "cxcywh", "xyxy") for b in (predicted, wanted))
    placed = F.l1_loss(predicted, wanted, reduction="sum") + generalized_box_iou_loss(*corners, reduction="sum")
    return (classes + box_weight * placed) / len(found.image)


def detector_loss(owl: Owl, batch: Batch, queries: Tensor, recipe: DetectorRecipe) -> Tensor:
    """The loss of a batch."""
    logits, boxes = predict(owl, batch.pixels, queries, recipe.schedule.autocast)
    return detection_loss(logits, boxes, batch.found, owl.num_patches_width, recipe.box_weight)


def class_queries() -> Tensor:
    """Tokens (Q, T) of the question for each shape."""
    return tokenize(build_tokenizer(), [_ASKED.format(shape) for shape in SHAPES])


def train_detector(recipe: DetectorRecipe, encoder: Path, output: Path, work: Path, progress: Progress) -> None:
    """Train from the CLIP in `encoder`, or go on from what `work` holds, and write the model to `output`."""
    owl, batches, queries = build_detector(recipe, load_clip(encoder)), Batches(recipe), class_queries()
    trainer = Trainer(owl, recipe.schedule)
    trainer.run(lambda step: detector_loss(owl, batches(step), queries, recipe), "detector", work, progress)
    save_detector(owl, recipe, output)


def save_detector(owl: Owl, recipe: DetectorRecipe, folder: Path) -> None:
    """Write float16 safetensors and the processor."""
    owl.half().save_pretrained(folder)
    owl.float()
    size = {"height": recipe.size, "width": recipe.size}
    pictures = OwlViTImageProcessor(size=size, image_mean=list(MEAN), image_std=list(STD))
    OwlViTProcessor(pictures, build_tokenizer()).save_pretrained(folder)
