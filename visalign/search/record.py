"""A search's folder: what made it, a line and the noise of every candidate, and how one of them is made again.

optimize.json        model, settings, method, rewards, budget, prompts
candidates.jsonl     a line a candidate: seed or noise, parent, values, cost
noise/000003.…       initial noise of the candidates of pipeline call 3, where it is not that of their seeds
first/ best/         a picture a prompt: the plain sample, and the best so far
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visalign.api import load_pipeline
from visalign.media_io import write_media
from visalign.sampling import load_lora
from visalign.search.sampler import PipelineSampler
from visalign.search.state import State
from visalign.types import Conditioning, InputError, Media, Prompts

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline

Line = dict[str, Any]
Kind = Literal["first", "best"]
SETTINGS, CANDIDATES = "optimize.json", "candidates.jsonl"


class SearchFolder:
    """Writes what a search does, as it does it: a search that is killed leaves all that it evaluated.

    Args:
        path: a folder without a search.
        settings: what makes a candidate again: see `replay`.
        prompts: all prompts.

    Raises:
        InputError: there is a search in it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], prompts: Prompts) -> None:
        if (path / CANDIDATES).exists():
            raise InputError(f"{str(path)!r} already holds a search; give another folder, or delete it")
        self.path, self.settings, self.prompts = path, settings, prompts
        (path / "noise").mkdir(parents=True, exist_ok=True)
        rows = [{**columns, "prompt": text} for text, columns in zip(prompts.texts, prompts.columns, strict=True)]
        self.write(SETTINGS, json.dumps({**settings, "prompts": rows}, indent=1, default=str))

    def add(self, state: State, iteration: int) -> None:
        """Append the candidates of a step; their noise is written before their lines."""
        lines = []
        for batch in state.batch.unique().tolist():
            part = state.take((state.batch == batch).nonzero().flatten())
            lines += _lines(part, iteration, self._noise(part.noise, batch))
        with (self.path / CANDIDATES).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def _noise(self, noise: Tensor | None, batch: int) -> str | None:
        if noise is None:
            return None
        name = f"noise/{batch:06d}.safetensors"
        temporary = self.path / f"{name}.tmp"
        save_file({"noise": noise.contiguous()}, temporary)
        os.replace(temporary, self.path / name)
        return name

    def show(self, kind: Kind, candidates: State) -> None:
        """Write the pictures of some prompts."""
        (self.path / kind).mkdir(exist_ok=True)
        for row, prompt in enumerate(candidates.prompts.tolist()):
            one = candidates.take([row])
            assert one.media is not None
            about = {"candidate": int(one.ids), "seed": int(one.seeds), "scores": scores_of(one, 0)}
            metadata = {"prompt": self.prompts.texts[prompt], **about, **self.settings}
            write_media(self.path / kind / f"{prompt:03d}", one.media, metadata)

    def picture(self, kind: Kind, prompt: int) -> Path:
        """The file that `show` wrote last."""
        return next((self.path / kind).glob(f"{prompt:03d}.*"))

    def write(self, name: str, text: str) -> Path:
        """Write a text file under a temporary name and rename it."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / name)
        return self.path / name


def scores_of(state: State, row: int) -> dict[str, float | None]:
    """The value and every reward of a candidate; None where there is no judgement."""
    values = {"value": float(state.values[row])} | {name: float(v[row]) for name, v in state.components.items()}
    return {name: v if math.isfinite(v) else None for name, v in values.items()}


def _lines(part: State, iteration: int, noise: str | None) -> list[Line]:
    return [
        {
            "prompt": int(part.prompts[row]),
            "candidate": int(part.ids[row]),
            "parent": None if part.parents[row] < 0 else int(part.parents[row]),
            "seed": int(part.seeds[row]),
            "noise": noise,
            "batch": int(part.batch[row]),
            "row": row,
            "iteration": iteration,
            "model_calls": int(part.model_calls[row]),
            "scores": scores_of(part, row),
        }
        for row in range(len(part))
    ]


@dataclass(frozen=True)
class SearchRecord:
    """A search's folder as it was left.

    Attributes:
        path: the folder.
        settings: optimize.json.
        lines: candidates.jsonl, the rows of a pipeline call in its order.
    """

    path: Path
    settings: Mapping[str, Any]
    lines: Sequence[Line]

    def of(self, prompt: int, candidate: int | None) -> Line:
        """The line of a candidate; None is the prompt's best.

        Raises:
            InputError: there is no such candidate.
        """
        own = [line for line in self.lines if line["prompt"] == prompt]
        found = [line for line in own if candidate is None or line["candidate"] == candidate]
        judged = [line for line in found if candidate is not None or line["scores"]["value"] is not None]
        if not judged:
            known = f"prompt {prompt} has the candidates 0 to {len(own) - 1}" if own else f"there is no prompt {prompt}"
            raise InputError(f"no candidate {candidate} in {str(self.path)!r}: {known}")
        return judged[0] if candidate is not None else max(judged, key=lambda line: line["scores"]["value"])


def read_search(folder: str | Path) -> SearchRecord:
    """What a search has written.

    Raises:
        InputError: the folder holds no search.
    """
    path = Path(folder)
    if not (path / CANDIDATES).is_file():
        raise InputError(f"{str(path)!r} holds no search: {CANDIDATES} is expected there")
    settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    texts = (path / CANDIDATES).read_text(encoding="utf-8").split("\n")[:-1]  # without a line that a kill has torn
    return SearchRecord(path, settings, [json.loads(text) for text in texts])


def replay(
    folder: str | Path,
    prompt: int = 0,
    candidate: int | None = None,
    *,
    pipeline: Pipeline | None = None,
    prompts: Prompts | None = None,
    device: str = "auto",
) -> Media:
    """Make a candidate of a search again, bitwise on the same machine: the rows of its pipeline call, and it of them.

    Args:
        folder: of the search.
        prompt: number of the prompt.
        candidate: its number; None is the prompt's best.
        pipeline: the model; None loads the one that the folder names.
        prompts: those of the search, where they came with images.
        device: for loading.

    Returns:
        One row.

    Raises:
        InputError: the folder holds no such candidate, or its model must be given.
    """
    record = read_search(folder)
    line = record.of(prompt, candidate)
    together = [other for other in record.lines if other["batch"] == line["batch"]]
    noise = None if line["noise"] is None else load_file(record.path / line["noise"])["noise"]
    sampler = sampler_of(pipeline or _loaded(record, device), prompts or _prompts(record), record.settings)
    with torch.no_grad():
        media = sampler.media(
            [other["prompt"] for other in together], [other["seed"] for other in together], noise,
            grad=False, checkpoint=False,
        )  # fmt: skip
    return media.take([line["row"]])


def sampler_of(pipeline: Pipeline, prompts: Prompts, settings: Mapping[str, Any]) -> PipelineSampler:
    """The sampler of a search, from its settings."""
    conditioning = Conditioning(prompts, settings["guidance_scale"], settings["call"])
    return PipelineSampler(pipeline, conditioning, settings["num_steps"])


def _loaded(record: SearchRecord, device: str) -> Pipeline:
    settings = record.settings
    if settings["model"] is None:
        raise InputError(f"the search in {str(record.path)!r} was given a loaded pipeline; give it to replay too")
    pipeline = load_pipeline(settings["model"], dtype=settings["dtype"], device=device)  # type: ignore[arg-type]
    if settings["lora"] is not None:
        load_lora(pipeline, Path(settings["lora"]))
    return pipeline


def _prompts(record: SearchRecord) -> Prompts:
    rows = record.settings["prompts"]
    columns = tuple({k: v for k, v in row.items() if k != "prompt"} for row in rows)
    return Prompts(tuple(row["prompt"] for row in rows), columns)
