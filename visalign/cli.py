"""The command line. Only typer is imported here: every command imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from visalign import cli_score

app = typer.Typer(
    name="visalign",
    help="Align diffusion and flow models for images and video with rewards and preferences.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the start-up time
    pretty_exceptions_enable=False,
    add_completion=False,
)
shapes = typer.Typer(help="The built-in world of coloured shapes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(shapes, name="shapes")
app.command()(cli_score.score)

Config = Annotated[str, typer.Argument(help="YAML file, such as configs/shapes/grpo.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the config.")]
Model = Annotated[str, typer.Option(help="Built-in model, diffusers folder, or hub id.")]
Prompt = Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")]
PromptFile = Annotated[str | None, typer.Option("--prompts", help="txt, jsonl, csv, parquet, or shapes/held_out.")]
Steps = Annotated[int | None, typer.Option("--num-steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="Guidance of the pipeline call.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


@app.command()
def quickstart(overrides: Overrides = None) -> None:
    """Align the built-in model in minutes, on a CPU, with no download; shows the held-out score."""
    from visalign import cli_run

    raise typer.Exit(cli_run.quickstart(overrides or []))


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(metavar="[PATH]", help="Continue from the latest checkpoint, or from this one.")
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine, one a GPU.")] = 1,
) -> None:
    """Align a model as a config says."""
    from visalign import cli_run

    if nproc > 1:
        raise typer.Exit(cli_run.launch(config, overrides or [], resume, nproc))
    raise typer.Exit(cli_run.train(config, overrides or [], resume))


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    model: Model = "shapes/sd3",
    lora: Annotated[Path | None, typer.Option(help="Folder of a LoRA.")] = None,
    prompt: Prompt = None,
    prompts: PromptFile = None,
    seed: Annotated[int, typer.Option(help="Of the first image; image m of a prompt has seed + m.")] = 0,
    num_images: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 1,
    num_steps: Steps = None,
    guidance_scale: Guidance = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of one pipeline call.")] = 8,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Make samples with a model and a LoRA; what made them stands in the files."""
    from visalign import cli_run
    from visalign.sampling import sample as make

    asked = cli_run.asked_prompts(prompt or [], prompts)
    cli_run.quiet_libraries()
    media = make(
        model, asked, lora=lora, out=out, seed=seed, num_images=num_images, num_steps=num_steps,
        guidance_scale=guidance_scale, batch=batch, dtype=dtype, device=device,
    )  # fmt: skip
    print(f"{len(media)} samples in {out}")


@app.command()
def compare(
    loras: Annotated[list[str], typer.Argument(help="LoRA folders, and base for none; the first is the reference.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    model: Model = "shapes/sd3",
    prompts: PromptFile = "shapes/held_out",
    rewards: Annotated[str, typer.Option(help="Names of rewards, comma separated.")] = "shapes",
    seed: Annotated[int, typer.Option(help="The default gives the samples of training's evaluations.")] = 1234,
    num_steps: Steps = None,
    guidance_scale: Guidance = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of one pipeline call.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="Samples shown side by side.")] = 24,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Compare LoRAs with their base: the same prompts and seeds, win rates, intervals, and a page side by side."""
    from visalign import cli_run
    from visalign.comparison import compare as run

    asked = cli_run.asked_prompts([], prompts)
    cli_run.quiet_libraries()
    found = run(
        model, loras, asked, cli_run.split(rewards), out=out, seed=seed, num_steps=num_steps,
        guidance_scale=guidance_scale, batch=batch, images=images, dtype=dtype, device=device,
        progress=lambda name: print(f"{name} …"),
    )  # fmt: skip
    cli_run.show_comparison(found)


@app.command()
def optimize(
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to search for.")] = None,
    prompts: PromptFile = None,
    count: Annotated[int | None, typer.Option(min=1, help="Only so many of the prompts, evenly by category.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="Names, comma separated, or YAML: '{clip: 5}'. Default: shapes.")
    ] = None,
    judge: Annotated[list[str] | None, typer.Option(help="Rewards that only look, in the same form.")] = None,
    method: Annotated[str, typer.Option(help="See: visalign list searches.")] = "best_of_n",
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the method; may be repeated.")
    ] = None,
    model_calls: Annotated[int | None, typer.Option(min=1, help="Budget of each prompt; backward is two.")] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Budget of each prompt.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget of each prompt.")] = None,
    compare_best_of_n: Annotated[
        bool, typer.Option("--compare-best-of-n", help="Spend as many model calls on best-of-N afterwards.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; the default is runs/optimize.")] = None,
    model: Model = "shapes/sd3",
    lora: Annotated[Path | None, typer.Option(help="Folder of a LoRA.")] = None,
    seed: Annotated[int, typer.Option(help="Candidate 0 is the plain sample of this seed.")] = 0,
    num_steps: Steps = None,
    guidance_scale: Guidance = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of one pipeline call.")] = 8,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Spend compute on a prompt: search for the sample that the rewards like best."""
    from visalign import cli_optimize

    budget = {"model_calls": model_calls, "candidates": candidates, "seconds": seconds}
    code = cli_optimize.run(
        prompt or [], prompts, reward or ["shapes"], judge or [], method, options or [], count=count, out=out,
        budget=budget, compare_best_of_n=compare_best_of_n, model=model, lora=lora, seed=seed, num_steps=num_steps,
        guidance_scale=guidance_scale, batch=batch, dtype=dtype, device=device,
    )  # fmt: skip
    raise typer.Exit(code)


@app.command("list")
def list_kind(
    kind: Annotated[str, typer.Argument(help="rewards, models, methods, searches or kernels.")],
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'hps*'.")] = "*",
) -> None:
    """List what there is, with what is known of each."""
    from visalign import cli_show

    cli_show.list_kind(kind, pattern)


@app.command()
def describe(name: Annotated[str, typer.Argument(help="A reward, method, kernel, model or config section.")]) -> None:
    """What a thing is, its options, and an example."""
    from visalign import cli_show

    cli_show.describe(name)


@app.command()
def doctor() -> None:
    """Check the installation and the machine; says what to do about what is wrong."""
    from visalign import doctor as checks

    raise typer.Exit(checks.main())


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    measure: Annotated[bool, typer.Option("--measure", help="Load the model and measure memory and time.")] = False,
) -> None:
    """Everything derived from a config, before anything is spent."""
    from visalign import cli_run

    cli_run.plan(config, overrides or [], measure)


@app.command()
def config(
    config: Annotated[str | None, typer.Argument(help="YAML file to resolve.")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema of all keys.")] = False,
) -> None:
    """Print a config with all its defaults, or the schema."""
    from visalign import cli_show

    cli_show.config(config, overrides or [], schema)


@shapes.command("render")
def shapes_render(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 24,
    size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 64,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Render true pictures with their captions: a data set of image and text files."""
    from visalign import cli_shapes

    cli_shapes.render(out, count, size, seed)


@shapes.command("verify")
def shapes_verify(paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")]) -> None:
    """Read pictures back into objects, and judge those whose prompt is known."""
    from visalign import cli_shapes

    cli_shapes.verify(paths)


@shapes.command("train")
def shapes_train(
    name: Annotated[str, typer.Argument(help="sd3 or mini.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; the default is runs/shapes/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.")] = False,
) -> None:
    """Make a built-in model again from nothing."""
    from visalign import cli_shapes

    cli_shapes.train(name, out or Path("runs") / "shapes" / name, resume)


@shapes.command("judges")
def shapes_judges(
    name: Annotated[str, typer.Argument(help="clip, vlm, or another judge of the built-in world.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    clip: Annotated[Path | None, typer.Option(help="The shapes/clip to build on; default: the shipped one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished training.")] = False,
    device: Annotated[str, typer.Option(help="Where vlm is trained: cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches for vlm.")] = 0,
) -> None:
    """Train a shipped judge again from nothing, by its recipe."""
    from visalign import cli_judges

    cli_judges.train(name, out, clip, resume, device, workers)


def with_resume_value(arguments: Sequence[str]) -> list[str]:
    """`--resume` alone means `latest`; a path may follow it.

    Example:
        >>> with_resume_value(["train", "a.yaml", "--resume"])
        ['train', 'a.yaml', '--resume=latest']
        >>> with_resume_value(["train", "a.yaml", "--resume", "run/checkpoints/000400", "seed=1"])
        ['train', 'a.yaml', '--resume=run/checkpoints/000400', 'seed=1']
    """
    if arguments[:1] != ["train"]:
        return list(arguments)
    result: list[str] = []
    for argument in arguments:
        if result and result[-1] == "--resume":
            is_path = not (argument.startswith(("-", "configs/")) or "=" in argument or Path(argument).is_file())
            result[-1:] = [f"--resume={argument}"] if is_path else ["--resume=latest", argument]
        else:
            result.append(argument)
    return [*result[:-1], "--resume=latest"] if result[-1] == "--resume" else result
