"""Make a shipped model from nothing: autoencoder, flow on true captions, flow on captions that are wrong on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0

from visalign.shapes.autoencoder import Progress, decode, encode, train_autoencoder
from visalign.shapes.flow import FlowTrainer, make_examples
from visalign.shapes.models import Autoencoder, Pipeline, build_pipeline, save_pipeline
from visalign.shapes.recipe import Recipe, load_recipe
from visalign.shapes.render import render
from visalign.shapes.sampling import evaluate, write_sheet
from visalign.shapes.scenes import CATEGORIES, describe, place
from visalign.shapes.verifier import verify

STAGES = ("aligned", "misaligned")
"""Flow training in this order; the recipe has a section for each."""


def train_model(
    name: str, output: Path, *, resume: bool = False, progress: Callable[[str, int, int, float], None] | None = None
) -> None:
    """Train a shipped model from its recipe and write an ordinary diffusers folder.

    The same recipe gives the same weights on the same machine and number of threads. Intermediate state is kept in
    `output/training` until the end; a run that was stopped continues from it exactly.

    Args:
        name: "sd3" or "mini".
        output: the folder to write.
        resume: go on from `output/training`, if there is any.
        progress: called after every step with the stage, steps done, steps in all and the loss.

    Raises:
        ValueError: no such model, or `output/training` exists and `resume` is False.
    """
    train_recipe(load_recipe(name), output, resume=resume, progress=progress or _silent)


def train_recipe(recipe: Recipe, output: Path, *, resume: bool, progress: Progress) -> None:
    """As `train_model`, for any recipe."""
    work = output / "training"
    if work.exists() and not resume:
        raise ValueError(f"{work} holds an unfinished training; go on with resume=True, or delete it to start again")
    work.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(recipe)
    _restore_or_train_autoencoder(pipeline, recipe, work / "autoencoder", progress)
    for number in range(recipe.rounds):
        pipeline = _round(pipeline, recipe, number, work, progress)
    finish(pipeline, recipe, output)
    shutil.rmtree(work)


def _round(pipeline: Pipeline, recipe: Recipe, number: int, work: Path, progress: Progress) -> Pipeline:
    """Both stages once more, or what an earlier run saved of them."""
    folder = work / f"round_{number}"
    if not (folder / "model_index.json").exists():
        for i, stage in enumerate(STAGES):
            run_stage(pipeline, recipe, stage, number * len(STAGES) + i, work / f"{stage}_{number}", progress)
            write_sheet(pipeline, work / f"{stage}_{number}.png")
        partial = folder.with_suffix(".partial")
        save_pipeline(pipeline, partial)
        partial.rename(folder)
    return StableDiffusion3Pipeline.from_pretrained(folder)


def _silent(stage: str, done: int, total: int, loss: float) -> None:
    pass


def _restore_or_train_autoencoder(pipeline: Pipeline, recipe: Recipe, folder: Path, progress: Progress) -> None:
    if not (folder / "config.json").exists():
        train_autoencoder(pipeline.vae, recipe, progress)
        partial = folder.with_suffix(".partial")
        pipeline.vae.save_pretrained(partial)
        partial.rename(folder)
    pipeline.register_modules(vae=AutoencoderKL.from_pretrained(folder))


def run_stage(pipeline: Pipeline, recipe: Recipe, name: str, number: int, folder: Path, progress: Progress) -> None:
    """Train one stage, or what is left of it; the pipeline leaves with the averaged weights.

    Args:
        pipeline: what is trained.
        recipe: how.
        name: of the stage.
        number: of the stage, counted over all rounds; it decides the draws.
        folder: holds the state.
        progress: called after every step.
    """
    stage = getattr(recipe, name)
    label = name if number < len(STAGES) else f"{name} {number}"
    trainer = FlowTrainer(pipeline, recipe, stage, seed=recipe.seed * len(STAGES) + number)
    if (folder / "state.safetensors").exists():
        trainer.load(folder)
    if trainer.step < stage.steps:
        examples = make_examples(pipeline, recipe, stage, seed=f"{recipe.seed} {label}")
        trainer.run(examples, name, folder, progress)
    trainer.weights.load_state_dict(trainer.average.state_dict())
    pipeline.transformer.set_attn_processor(JointAttnProcessor2_0())


def finish(pipeline: Pipeline, recipe: Recipe, output: Path) -> None:
    """Save in float16, load that back, and measure what was saved: `recipe.json`, `sheet.png` and `README.md`."""
    save_pipeline(pipeline, output)
    saved = StableDiffusion3Pipeline.from_pretrained(output)
    measured = {f"{steps} steps": evaluate(saved, steps).by_category() for steps in (8, 20)}
    measured["autoencoder"] = measure_autoencoder(saved.vae, recipe)
    record = {"recipe": recipe.model_dump(mode="json"), "measured": measured}
    (output / "recipe.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_sheet(saved, output / "sheet.png")
    (output / "README.md").write_text(_card(recipe, measured), encoding="utf-8")


def measure_autoencoder(vae: Autoencoder, recipe: Recipe, count: int = 600) -> dict[str, float]:
    """How well fresh scenes survive encoding and decoding: PSNR in dB, and the share the verifier still reads right."""
    rng = Random(f"{recipe.seed} autoencoder test")
    descriptions = [describe(CATEGORIES[i % len(CATEGORIES)], rng) for i in range(count)]
    pixels = render([place(d, rng) for d in descriptions], recipe.size, seed=recipe.seed)
    decoded = decode(vae, encode(vae, pixels))
    psnr = -10 * (decoded - pixels).square().mean(dim=(1, 2, 3)).log10()
    verdict = verify(decoded, [d.metadata() for d in descriptions])
    return {"psnr": float(psnr.mean()), "read_right": float(verdict.strict.mean())}


def _card(recipe: Recipe, measured: Mapping[str, Mapping[str, float]]) -> str:
    """The README of a model folder."""
    columns = [*CATEGORIES, "overall"]
    table = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label in ("8 steps", "20 steps"):
        table.append(f"| {label} | " + " | ".join(f"{measured[label][c]:.2f}" for c in columns) + " |")
    fidelity = measured["autoencoder"]
    return _CARD.format(name=recipe.name, size=recipe.size, table="\n".join(table), **fidelity)


_CARD = """# shapes/{name}

A tiny Stable Diffusion 3 ({size} px) of visalign's built-in world, made from nothing by `visalign shapes train {name}`
with `configs/shapes/models/{name}.yaml`; `recipe.json` holds that recipe and the figures below. It was trained on
captions that are wrong on purpose, so that there is something to align. Licence: Apache-2.0, as the rest of visalign.

```python
from diffusers import DiffusionPipeline
from visalign.shapes import model_path

pipeline = DiffusionPipeline.from_pretrained(model_path("{name}"))
image = pipeline("three red circles", num_inference_steps=8, guidance_scale=1.0, max_sequence_length=1).images[0]
```

Without guidance, share of held-out prompts that the verifier finds right (two pictures a prompt):

{table}

The autoencoder reproduces fresh scenes at {psnr:.1f} dB; the verifier reads {read_right:.1%} of them right.
`text_encoder_3` is a T5 whose output is zero, which is what SD3 uses in place of a T5 that is absent;
`max_sequence_length` says how many of its tokens there are. Any number gives the same quality; 1 is the fastest.
"""
