"""Where a reward's weights are, and how they are read: safetensors first, and never a pickle that could run code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from visalign.rewards.base import Weights
from visalign.shapes import judge_path
from visalign.types import InputError


def source_of(name: str) -> str:
    """What `from_pretrained` is given: the folder of a shipped judge (`shapes/clip`), else the name itself.

    Raises:
        InputError: there is no such judge, or it is not made yet.
    """
    if not name.startswith("shapes/"):
        return name
    try:
        folder = judge_path(name.removeprefix("shapes/"))
    except ValueError as error:
        raise InputError(str(error)) from None
    if not folder.is_dir():
        raise InputError(
            f"{name} is not made yet; `visalign shapes judges {folder.name} --out FOLDER` makes it, then write "
            f"model: FOLDER"
        )
    return str(folder)


def fetch(weights: Weights, override: str | None = None) -> Path:
    """The local path of a weight file, downloaded once by huggingface_hub.

    Args:
        weights: repo and file.
        override: a local file to use in its place.

    Raises:
        InputError: the override does not exist, or the file is not at hand and cannot be downloaded.
    """
    if override is not None:
        path = Path(override)
        if not path.is_file():
            raise InputError(f"there is no weight file {override!r}; give the path of {weights.file}")
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(weights.repo, weights.file))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the weights {weights.file} of {weights.repo} are not at hand and cannot be downloaded: {error}. "
            f"Give a local file as `weights`, or unset HF_HUB_OFFLINE"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, on the CPU, by name; nested `state_dict` entries are unwrapped.

    Raises:
        InputError: the file holds anything but tensors, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{str(path)!r} cannot be read as plain tensors ({type(error).__name__}); pickles that hold code are "
            f"refused. Convert it to safetensors"
        ) from error
    return loaded.get("state_dict", loaded)
