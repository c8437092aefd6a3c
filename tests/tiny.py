"""Tiny diffusers pipelines as test fixtures: `build("sd3")` is a pipeline with the arguments of a call for two rows."""

from __future__ import annotations

# Their builders register themselves in CASES.
from tests import tiny_animate, tiny_edit, tiny_flow, tiny_image, tiny_video  # noqa: F401
from tests.tiny_parts import CASES, TinyCase

__all__ = ["CASES", "TinyCase", "build"]


def build(name: str) -> TinyCase:
    """The tiny case of this name, the same at every call."""
    return CASES[name]()
