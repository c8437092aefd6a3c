"""Answers on disk, so that no question is paid for twice: one small JSON file each, named by the whole question."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from visalign.rewards.judge import Answer, Question


def key_of(model: str, question: Question, pictures: Sequence[Image]) -> str:
    """The name of a question: a hash of the model and of every field, pixels included.

    The server is not part of it: the same model elsewhere gives the same answer.

    Args:
        model: the name that the model is served by.
        question: all that is asked.
        pictures: its images at 8 bits, as the judge sees them.

    Example:
        >>> key_of("m", Question("a"), ()) == key_of("m", Question("a"), ())
        True
        >>> key_of("m", Question("a"), ()) == key_of("m", Question("a", seed=1), ())
        False
    """
    images = [[*p.size, hashlib.sha256(p.tobytes()).hexdigest()] for p in pictures]
    fields = {**vars(question), "images": images, "model": model}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=dict).encode()).hexdigest()


class AnswerCache:
    """A folder of answers.

    An answer is written under another name and renamed, so that whoever is killed leaves a whole entry or none. A
    damaged entry counts as missing and is replaced.

    Args:
        folder: made when missing; several processes may share it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> Answer | None:
        """The answer of a key, or None."""
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
            return Answer(entry["text"], tuple(entry["tokens"]), tuple(entry["logprobs"]), entry["continuation"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; one with an error is not kept."""
        if answer.error:
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            json.dump({name: value for name, value in vars(answer).items() if name != "error"}, file, default=dict)
        os.replace(file.name, path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
