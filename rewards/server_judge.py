"""A judge behind any OpenAI-compatible server (vLLM, SGLang, `transformers serve`): many calls at once, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError
from PIL.Image import Image

from visalign.rewards.judge import Answer, Judge, Question
from visalign.rewards.judge_cache import AnswerCache, key_of
from visalign.rewards.judge_client import JudgeClient, answer_of, raw_reply, request_of
from visalign.rewards.judge_patience import Breaker, Patience, seconds_of
from visalign.rewards.judge_reading import mismatch
from visalign.rewards.pil import to_pil
from visalign.types import InputError

_MOST_CALLS = 100  # connections of one session
_NEXT_SAMPLE = 1_000_003  # far from the neighbouring seeds, which a self-ensemble asks for


@dataclass(eq=False)
class _Failed(Exception):
    """A call without an answer: what happened, what came, whether to try again and when, and is the server down?"""

    message: str
    text: str = ""
    retry: bool = True
    told: float = 0.0
    down: bool = True


class ServerJudge(Judge):
    """Asks a served model. The server's key, where it needs one, is read from VISALIGN_JUDGE_KEY.

    Connections that drop, time-outs, damaged replies, 429 and 5xx are tried again with growing random waits; other
    refusals are not. An answer that does not satisfy its schema is sampled anew where the temperature allows it.
    Whatever still fails is an answer with an `error` and the raw text.

    Args:
        server: base URL that ends in `/v1`.
        model: the name that the server knows the model by.
        concurrency: calls at once, 1 to 100.
        timeout: seconds for one call.
        retries: further calls for one question after failures of the transport.
        cache: folder of kept answers; None keeps none.
        patience: waits, and when to stop calling a server that is down.

    Raises:
        InputError: the URL is not one, or does not end in `/v1`; a number is out of range.
    """

    def __init__(
        self,
        server: str,
        model: str,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 5,
        cache: str | Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname or not server.endswith("/v1"):
            raise InputError(
                f"{server!r} is no base URL of a server; write http:// or https:// and let it end in /v1, "
                f"for example http://localhost:8000/v1"
            )
        if not 1 <= concurrency <= _MOST_CALLS or timeout <= 0 or retries < 0:
            raise InputError(
                f"concurrency {concurrency}, timeout {timeout} and retries {retries} came; write a concurrency from 1 "
                f"to {_MOST_CALLS}, a timeout above 0 and 0 or more retries"
            )
        self.server, self.model = server, model
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.cache = None if cache is None else AnswerCache(cache)
        self.patience = patience or Patience()
        self.breaker = Breaker(self.patience)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order; not more than `concurrency` calls are out at any time."""
        return _run(self._ask(questions))

    async def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers = [Answer()] * len(questions)
        waiting = iter(enumerate(questions))
        async with JudgeClient(self.server, self.timeout) as client:

            async def work() -> None:
                for index, question in waiting:
                    answers[index] = await self._kept(client, question)

            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(questions))):
                    group.create_task(work())
        return answers

    async def _kept(self, client: JudgeClient, question: Question) -> Answer:
        pictures = await asyncio.to_thread(_pictures, question)
        if self.cache is None:
            return await self._satisfying(client, question, pictures)
        key = await asyncio.to_thread(key_of, self.model, question, pictures)
        answer = await asyncio.to_thread(self.cache.get, key)
        if answer is None:
            answer = await self._satisfying(client, question, pictures)
            await asyncio.to_thread(self.cache.put, key, answer)
        return answer

    async def _satisfying(self, client: JudgeClient, question: Question, pictures: list[Image]) -> Answer:
        """The first sample that satisfies the question's schema."""
        repairs = self.patience.repairs if question.temperature > 0 else 0
        answer = await self._patient(client, question, pictures)
        for sample in range(1, repairs + 1):
            if answer.error or not _breach(answer, question):
                break
            asked = replace(question, seed=question.seed + sample * _NEXT_SAMPLE)
            answer = await self._patient(client, asked, pictures)
        return answer if answer.error else replace(answer, error=_breach(answer, question))

    async def _patient(self, client: JudgeClient, question: Question, pictures: list[Image]) -> Answer:
        """Call until there is an answer, the retries are used up, or the server is given up."""
        request = await asyncio.to_thread(request_of, self.model, question, pictures)
        failed = _Failed("not called")
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(self.patience.wait(attempt, failed.told))
            try:
                return await self._permitted(client, question, request)
            except _Failed as failure:
                failed = failure
            if not failed.retry or failed.told > self.patience.longest:
                break
        return Answer(failed.text, error=f"no answer of {self.server}, tries: {attempt + 1}, at last: {failed.message}")

    async def _permitted(self, client: JudgeClient, question: Question, request: dict[str, Any]) -> Answer:
        while not (permit := self.breaker.ask()).go:
            if not permit.wait:
                raise _Failed(f"it is down and not called for a while: {self.breaker.trouble}", retry=False)
            await asyncio.sleep(permit.wait)
        trouble = "cancelled"
        try:
            answer = await self._call(client, question, request)
            trouble = ""
        except _Failed as failure:
            trouble = failure.message if failure.down else ""
            raise
        finally:
            self.breaker.report(permit, trouble)
        return answer

    async def _call(self, client: JudgeClient, question: Question, request: dict[str, Any]) -> Answer:
        try:
            async with asyncio.timeout(self.timeout):
                output = await client.chat_completion(**request)
        except HfHubHTTPError as error:
            raise _refused(error) from error
        except TimeoutError as error:
            raise _Failed(f"no answer within {self.timeout} s") from error
        except Exception as error:  # a dropped connection is another class in each HTTP library
            raise _Failed(f"{type(error).__name__}: {error}"[:500], _raw()) from error
        try:
            return answer_of(output, question)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _Failed(f"the reply is no chat completion ({error})", _raw()) from error


def _refused(error: HfHubHTTPError) -> _Failed:
    status, text = error.response.status_code, error.response.text
    told = seconds_of(error.response.headers.get("retry-after", ""))
    again = status in (408, 429) or status >= 500
    return _Failed(f"status {status}: {text[:500]}", text, retry=again, told=told, down=status >= 500)


def _breach(answer: Answer, question: Question) -> str:
    return "" if question.schema is None else mismatch(answer.text, question.schema)


def _raw() -> str:
    return raw_reply.get().decode(errors="replace")


def _pictures(question: Question) -> list[Image]:
    return [to_pil(image.unsqueeze(0))[0] for image in question.images]


def _run(work: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
    """Run to the end in a fresh loop: here, or in a thread where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
