"""Tables of short names → "module:object". Naming a thing imports nothing; loading it imports only that thing.

Three ways to name a reward (or a method, a kernel, …): a short name of the table, an entry point of the group
`visalign.<kind>` in an installed package, or a dotted path `my_module:my_object`.
"""

from __future__ import annotations

import fnmatch
import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from visalign.section import nearest
from visalign.types import InputError

TABLES: dict[str, dict[str, str]] = {
    "rewards": {
        "shapes": "visalign.rewards.shapes:ShapesReward",
        "jpeg_size": "visalign.rewards.jpeg_size:JpegSize",
        "palette": "visalign.rewards.palette:Palette",
        "clip": "visalign.rewards.clip:Clip",
        "pickscore": "visalign.rewards.pickscore:PickScore",
        "hpsv2": "visalign.rewards.hps:HPSv2",
        "hpsv2.1": "visalign.rewards.hps:HPSv21",
        "srp": "visalign.rewards.hps:RelativeScore",
        "mps": "visalign.rewards.mps:MPS",
        "imagereward": "visalign.rewards.imagereward:ImageReward",
        "aesthetic": "visalign.rewards.aesthetic:Aesthetic",
        "aesthetic_v2.5": "visalign.rewards.aesthetic_v25:AestheticV25",
        "artifact_head": "visalign.rewards.artifact_head:ArtifactHead",
        "ocr": "visalign.rewards.ocr:OCR",
        "geneval": "visalign.rewards.geneval:GenEval",
        "dino": "visalign.rewards.dino:Dino",
        "hummingbird": "visalign.rewards.hummingbird:Hummingbird",
        "lpips": "visalign.rewards.lpips:LPIPS",
        "ssim": "visalign.rewards.ssim:SSIM",
        "psnr": "visalign.rewards.psnr:PSNR",
        "identity": "visalign.rewards.identity:Identity",
        "sharpness": "visalign.rewards.sharpness:Sharpness",
        "colourfulness": "visalign.rewards.colourfulness:Colourfulness",
        "niqe": "visalign.rewards.niqe:Niqe",
        "hpsv3": "visalign.rewards.hpsv3:HPSv3",
        "videoalign": "visalign.rewards.videoalign:VideoAlign",
        "videoscore2": "visalign.rewards.videoscore2:VideoScore2",
        "vqascore": "visalign.rewards.vqascore:VQAScore",
        "yes_probability": "visalign.rewards.yes_probability:YesProbability",
        "promptecho": "visalign.rewards.promptecho:PromptEcho",
        "unifiedreward": "visalign.rewards.unifiedreward:UnifiedReward",
        "rationalrewards": "visalign.rewards.rationalrewards:RationalRewards",
        "editscore": "visalign.rewards.editscore:EditScore",
        "principles": "visalign.rewards.principles:Principles",
        "artifact": "visalign.rewards.artifact:Artifact",
        "mllm_score": "visalign.rewards.mllm_score:MLLMScore",
        "pairwise": "visalign.rewards.pairwise:Pairwise",
        "consistency": "visalign.rewards.consistency:Consistency",
    },
    "methods": {
        "grpo": "visalign.methods.grpo:GRPO",
        "nft": "visalign.methods.nft:NFT",
        "draft": "visalign.methods.draft:DRaFT",
        "dpo": "visalign.methods.dpo:DPO",
        "sft": "visalign.methods.sft:SFT",
    },
    "kernels": {
        "ode": "visalign.kernels:ode",
        "ddim": "visalign.kernels:ddim",
        "flow_sde": "visalign.kernels:flow_sde",
        "dance_sde": "visalign.kernels:dance_sde",
        "cps": "visalign.kernels:cps",
        "renoise": "visalign.kernels:renoise",
        "wan_linear": "visalign.kernels:wan_linear",
        "memoryless": "visalign.kernels:memoryless",
    },
    "models": {
        "shapes/sd3": "visalign.shapes:model_path",
        "shapes/mini": "visalign.shapes:model_path",
    },
    "searches": {
        "best_of_n": "visalign.search.best_of_n:BestOfN",
        "reno": "visalign.search.reno:ReNO",
    },
}


def table(kind: str) -> dict[str, str]:
    """Every known name of a kind with its target: the built-in table and the installed entry points."""
    if kind not in TABLES:
        raise InputError(f"there is no list of {kind!r}.{nearest(kind, TABLES)} Known: {', '.join(TABLES)}")
    return TABLES[kind] | {e.name: e.value for e in entry_points(group=f"visalign.{kind}")}


def names(kind: str, pattern: str = "*") -> list[str]:
    """Names of a kind that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(table(kind), pattern))


def singular(kind: str) -> str:
    """`reward` for `rewards`, `search` for `searches`."""
    return {"searches": "search"}.get(kind, kind.removesuffix("s"))


def load(kind: str, name: str) -> Any:
    """The object behind a short name or a dotted path `module:object`.

    Raises:
        InputError: the name is unknown (the nearest is named), or the path cannot be imported.
    """
    known = table(kind)
    if name not in known and ":" not in name:
        raise InputError(
            f"unknown {singular(kind)} {name!r}.{nearest(name, known)} See: visalign list {kind}, "
            f"or give a dotted path such as my_module:my_object"
        )
    return _resolve(known.get(name, name))


def _resolve(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's module beside the script
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{target!r} cannot be imported: {error}. Is {module_name!r} on the Python path?") from error
    if attribute not in vars(module):
        raise InputError(f"module {module_name!r} has no {attribute!r}.{nearest(attribute, vars(module))}")
    return vars(module)[attribute]
