"""The wire of a judge behind a server: how a question becomes a chat request and a reply becomes an answer."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from huggingface_hub import AsyncInferenceClient, ChatCompletionOutput
from PIL.Image import Image

from visalign.rewards.judge import Answer, Question
from visalign.rewards.judge_reading import merge

KEY = "VISALIGN_JUDGE_KEY"  # environment variable with the server's key, so that none stands in a config
raw_reply: ContextVar[bytes] = ContextVar("raw_reply", default=b"")  # of this task's last call, readable or not


class JudgeClient(AsyncInferenceClient):
    """The hub's chat client for any OpenAI-compatible server. To be made inside the loop that uses it.

    Three things differ from its parent: HF_HUB_OFFLINE does not stop it, because a judge is not the hub; a JSON schema
    goes out in OpenAI's form, not in that of text-generation-inference; and the server gets the key of
    VISALIGN_JUDGE_KEY, never the user's hub token.

    Args:
        server: base URL, ends in `/v1`.
        timeout: seconds of silence before a call is given up.
    """

    def __init__(self, server: str, timeout: float) -> None:
        super().__init__(base_url=server, timeout=timeout, api_key=os.environ.get(KEY) or "none")

    async def _get_async_client(self) -> Any:
        session = await super()._get_async_client()
        session.event_hooks = {}
        return session

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        body = request_parameters.json
        if "response_format" in body:
            form = {"name": "answer", "schema": body["response_format"]["value"], "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        raw_reply.set(b"")
        reply: Any = await super()._inner_post(request_parameters, stream=stream)
        raw_reply.set(reply)
        return reply


def data_url(picture: Image) -> str:
    """A picture as a PNG in a data URL: without loss, because artifacts and letters are judged."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def request_of(model: str, question: Question, pictures: Sequence[Image]) -> dict[str, Any]:
    """The arguments of `chat_completion`: pictures before the text, so that a prefix cache serves the rubric.

    Args:
        model: the name that the model is served by.
        question: what is asked.
        pictures: its images at 8 bits.
    """
    content = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": question.text}]}]
    if question.system:
        messages.insert(0, {"role": "system", "content": question.system})
    request: dict[str, Any] = {"model": model, "messages": messages}
    request |= {"temperature": question.temperature, "seed": question.seed}
    if question.continuation is not None:
        messages.append({"role": "assistant", "content": question.continuation})
        echo = {"prompt_logprobs": 1, "continue_final_message": True, "add_generation_prompt": False}
        return request | {"max_tokens": 1, "extra_body": echo}
    if question.top_logprobs:
        request |= {"logprobs": True, "top_logprobs": question.top_logprobs}
    if question.schema is not None:
        form = {"name": "answer", "schema": dict(question.schema), "strict": True}
        request |= {"response_format": {"type": "json_schema", "json_schema": form}}
    return request | {"max_tokens": question.max_tokens}


def answer_of(output: ChatCompletionOutput, question: Question) -> Answer:
    """What a reply says; an answer with an `error` where the server cannot do what was asked.

    Raises:
        AttributeError, IndexError, KeyError, TypeError, ValueError: the reply is no chat completion.
    """
    if question.continuation is not None:
        return _echo_of(output.get("prompt_logprobs"), question.continuation)
    choice = output.choices[0]
    text = choice.message.content
    if not isinstance(text, str):
        return Answer(error=f"the server returned no text; it stopped with {choice.finish_reason!r}")
    positions = choice.logprobs.content if question.top_logprobs and choice.logprobs else []
    tokens = tuple(p.token for p in positions)
    logprobs = tuple(merge((t.token, t.logprob) for t in p.top_logprobs) for p in positions)
    if question.top_logprobs and not all(logprobs or [None]):
        missing = (
            "the server gives no log-probabilities; serve the model by one that does (vLLM, SGLang), or run it here"
        )
        return Answer(text, tokens, error=missing)
    return Answer(text, tokens, logprobs)


def _echo_of(positions: Sequence[Mapping[str, Any] | None] | None, continuation: str) -> Answer:
    """The mean log-probability of the prompt's last tokens, those that spell the continuation."""
    if positions is None:
        missing = (
            "the server gives no log-probabilities of a prompt (`prompt_logprobs`, as vLLM does); run the model here"
        )
        return Answer(error=missing)
    wanted, read, values = "".join(continuation.split()), "", list[float]()
    for position in reversed(positions):
        if read == wanted or position is None:
            break
        own = next(iter(position.values()))  # the prompt's own token comes first, then the likeliest
        read = "".join(own["decoded_token"].split()) + read
        values.append(float(own["logprob"]))
    if read != wanted or not values:
        return Answer(error=f"the prompt of the server ends in {read!r:.80}, not in the continuation {wanted!r:.80}")
    return Answer(continuation=sum(values) / len(values))
