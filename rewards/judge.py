"""What a vision-language judge is asked and what it answers: one interface for a local model and for a server.

A question carries its images before its text, so that a server's prefix cache serves the rubric. An answer keeps the
log-probabilities of what could have been said, because a graded score needs no second call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visalign.types import InputError

SERVER_OPTIONS = ("url", "concurrency", "timeout", "retries", "cache")


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        text: the user's turn, after the images.
        images: (3, H, W) each, in [0, 1].
        system: the system turn, or empty.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        top_logprobs: how many alternatives a position keeps.
        seed: of the sampling; part of the cache key, so self-ensembles ask with different seeds.
        schema: a JSON schema that the answer must satisfy, or None.
        continuation: a text whose own mean log-probability is asked for, in place of an answer; or None.
    """

    text: str
    images: tuple[Tensor, ...] = ()
    system: str = ""
    max_tokens: int = 1
    temperature: float = 0.0
    top_logprobs: int = 20
    seed: int = 0
    schema: Mapping[str, object] | None = None
    continuation: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: the answer, raw.
        tokens: the sampled tokens, in order.
        logprobs: for each position, token → log-probability of its likeliest alternatives.
        continuation: mean log-probability of the question's continuation; None where none was asked for.
        error: why there is no answer; empty when there is one. A failed call is invalid, never a score.
    """

    text: str = ""
    tokens: tuple[str, ...] = ()
    logprobs: tuple[Mapping[str, float], ...] = field(default_factory=tuple)
    continuation: float | None = None
    error: str = ""


class Judge(ABC):
    """Answers questions about images; a call that fails gives an answer with an `error`, and the others go on."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order."""


Served = str | Mapping[str, Any] | None
"""Where a judge is served: a base URL, or `url` with options of `ServerJudge` such as `cache`; None is here."""


def open_judge(model: str, server: Served = None) -> Judge:
    """A judge by name: local through transformers, or behind an OpenAI-compatible server.

    Args:
        model: `shapes/vlm`, a folder or a hub id; with a server, the name that it serves the model by.
        server: base URL that ends in `/v1`, or a mapping with `url` and any of `concurrency`, `timeout`, `retries` and
            `cache`; None runs the model here.

    Raises:
        InputError: the model cannot be loaded, the URL is none, or an option is unknown.
    """
    if server is None:
        from visalign.rewards.local_judge import local_judge

        return local_judge(model)
    from visalign.rewards.server_judge import ServerJudge

    options = {"url": server} if isinstance(server, str) else dict(server)
    unknown = sorted(set(options) - set(SERVER_OPTIONS))
    if unknown or "url" not in options:
        raise InputError(
            f"the server came with {', '.join(sorted(options)) or 'nothing'}; give its url, and of options only "
            f"{', '.join(SERVER_OPTIONS[1:])}"
        )
    return ServerJudge(options.pop("url"), model, **options)
