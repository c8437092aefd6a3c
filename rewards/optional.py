"""Libraries of optional dependency groups: imported where they are used, and named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from visalign.types import InputError


def optional(module: str, extra: str, reward: str) -> Any:
    """A module of an optional dependency group.

    Args:
        module: what is imported.
        extra: the group that installs it.
        reward: who needs it, for the message.

    Raises:
        InputError: it is not installed.

    Example:
        >>> optional("math", "none", "psnr").sqrt(4)
        2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"reward {reward!r} needs {error.name}, which is not installed; write: pip install 'visalign[{extra}]'"
        ) from error
