"""A judge on this machine: any stock vision-language model of transformers, one loaded copy for all who name it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visalign.rewards.judge import Answer, Judge, Question
from visalign.rewards.judge_reading import merge, mismatch
from visalign.rewards.pil import to_pil
from visalign.rewards.weights import source_of
from visalign.types import InputError

_shared: WeakValueDictionary[str, LocalJudge] = WeakValueDictionary()


def local_judge(model: str) -> LocalJudge:
    """The judge of a name; the same object while anyone holds it.

    Args:
        model: `shapes/vlm`, a folder or a hub id.

    Raises:
        InputError: it is not found, or is no vision-language model with a chat template.
    """
    judge = _shared.get(model)
    if judge is None:
        judge = _shared[model] = LocalJudge(model)
    return judge


class LocalJudge(Judge):
    """Answers by a model of transformers; bf16 where there is a GPU, else fp32; it goes where the images are.

    Greedy at temperature 0; else every question samples with a generator of its own, so that an answer does not
    depend on the other questions. Log-probabilities are those of the model, before any temperature, in float32.

    Args:
        model: `shapes/vlm`, a folder or a hub id.
        micro_batch: questions answered at once.

    Raises:
        InputError: it cannot be loaded, or is no vision-language model with a chat template.
    """

    def __init__(self, model: str, micro_batch: int = 8) -> None:
        self.micro_batch = micro_batch
        self.module, self.processor = _load(source_of(model))
        self.tokenizer: Any = self.processor.tokenizer
        self._stops = _stops(self.module)
        self._controls = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]

    @torch.no_grad()
    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order."""
        alike = defaultdict[tuple[bool, int, int], list[int]](list)
        for index, question in enumerate(questions):
            alike[question.continuation is None, len(question.images), question.max_tokens].append(index)
        answers = [Answer()] * len(questions)
        for (talks, _, _), indices in alike.items():
            answer = self._talk if talks else self._echo
            for start in range(0, len(indices), self.micro_batch):
                part = indices[start : start + self.micro_batch]
                for index, given in zip(part, answer([questions[i] for i in part]), strict=True):
                    answers[index] = given
        return answers

    def _inputs(self, questions: Sequence[Question]) -> dict[str, Tensor]:
        """What the model takes, rows padded on the left."""
        for image in questions[0].images[:1]:
            self._move(image.device)
        batch = self.processor.apply_chat_template(
            [_messages(q, self._plain) for q in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return dict(batch.to(self.module.device, dtype=self.module.dtype))

    def _plain(self, text: str) -> str:
        """A text in which nothing is a control token: a prompt must not end its turn or ask for a picture."""
        for token in self._controls:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _move(self, device: torch.device) -> None:
        if device.type == "cpu":
            self.module.float()  # bf16 rounds, and is slow here
        self.module.to(device)

    def _talk(self, questions: Sequence[Question]) -> list[Answer]:
        from transformers import LogitsProcessorList

        choice = _Choice(questions)
        inputs, chooser = self._inputs(questions), LogitsProcessorList([choice])
        self.module.generate(**inputs, max_new_tokens=questions[0].max_tokens, logits_processor=chooser)
        return [self._read(choice, row, question) for row, question in enumerate(questions)]

    def _read(self, choice: _Choice, row: int, question: Question) -> Answer:
        steps = [int(chosen[row]) for chosen in choice.chosen]
        length = next((n for n, token in enumerate(steps, 1) if token in self._stops), len(steps))
        text = self.tokenizer.decode(steps[:length], skip_special_tokens=True)
        tokens = tuple(self.tokenizer.batch_decode([[token] for token in steps[:length]]))
        kept = [(v[row], i[row]) for v, i in choice.likeliest[:length]] if question.top_logprobs else []
        logprobs = tuple(self._named(v[: question.top_logprobs], i[: question.top_logprobs]) for v, i in kept)
        error = "" if question.schema is None else mismatch(text, question.schema)
        return Answer(text, tokens, logprobs, error=error)

    def _named(self, values: Tensor, tokens: Tensor) -> dict[str, float]:
        return merge(zip(self.tokenizer.batch_decode(tokens[:, None]), values.tolist(), strict=True))

    def _echo(self, questions: Sequence[Question]) -> list[Answer]:
        """Mean log-probabilities of continuations by teacher forcing, in one forward pass."""
        tails = [
            self.tokenizer(self._plain(q.continuation or ""), add_special_tokens=False).input_ids for q in questions
        ]
        inputs, heads = _extended(self._inputs(questions), tails)
        first = min(heads) - 1  # the position that predicts the first token of the shortest prompt's continuation
        kept = inputs["input_ids"].shape[1] - first
        logits = self.module(**inputs, use_cache=False, logits_to_keep=kept).logits  # (B, kept, V)
        return [
            _mean(logits[row, head - 1 - first :][: len(tail)], tail)
            for row, (head, tail) in enumerate(zip(heads, tails, strict=True))
        ]


class _Choice:
    """Takes the place of sampling inside `generate`: picks every row's next token and keeps what it saw."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.generators = [torch.Generator().manual_seed(q.seed) for q in questions]
        self.chosen: list[Tensor] = []  # (B,) a position
        self.likeliest: list[tuple[Tensor, Tensor]] = []  # values and tokens, (B, K) a position

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = scores.float().log_softmax(-1).cpu()  # (B, V)
        most = min(logprobs.shape[-1], max(q.top_logprobs for q in self.questions))
        rows = zip(logprobs, self.questions, self.generators, strict=True)
        chosen = torch.stack([_next(row, q.temperature, g) for row, q, g in rows])
        self.chosen.append(chosen)
        values, tokens = logprobs.topk(most)
        self.likeliest.append((values, tokens))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None].to(scores.device), 0.0)


def _next(logprobs: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logprobs.argmax()
    return torch.multinomial((logprobs / temperature).softmax(-1), 1, generator=generator)[0]


def _mean(logits: Tensor, tokens: list[int]) -> Answer:
    if not tokens:
        return Answer(error="the continuation has no token; give a text")
    logprobs = logits.float().log_softmax(-1)  # (T, V)
    own = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)]
    return Answer(continuation=float(own.mean()))


def _extended(inputs: dict[str, Tensor], tails: list[list[int]]) -> tuple[dict[str, Tensor], list[int]]:
    """Rows with their tails behind them, padded on the right, and the lengths of what came before.

    Padding behind causal attention changes nothing, and positions count from the first token. Of a tail, tensors
    that mark the kind of a token hold 0, which is text.
    """
    mask = inputs["attention_mask"].bool()
    ends = {"input_ids": tails, "attention_mask": [[1] * len(t) for t in tails]}
    result = dict(inputs)
    for name, value in inputs.items():
        if value.shape == mask.shape:
            added = ends.get(name, [[0] * len(t) for t in tails])
            rows = [torch.cat([v[m], v.new_tensor(a)]) for v, m, a in zip(value, mask, added, strict=True)]
            result[name] = pad_sequence(rows, batch_first=True)
    return result, mask.sum(1).tolist()


def _messages(question: Question, plain: Callable[[str], str]) -> list[dict[str, Any]]:
    pictures = [{"type": "image", "image": to_pil(image.unsqueeze(0))[0]} for image in question.images]
    user = {"role": "user", "content": [*pictures, {"type": "text", "text": plain(question.text)}]}
    system = {"role": "system", "content": [{"type": "text", "text": plain(question.system)}]}
    return [system, user] if question.system else [user]


def _load(source: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, ProcessorMixin

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        module = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the judge {source!r} cannot be loaded: {error}") from error
    if not isinstance(processor, ProcessorMixin) or processor.chat_template is None:
        raise InputError(
            f"{source!r} has no processor with a chat template; name a vision-language model that was tuned to answer, "
            f"such as Qwen/Qwen3-VL-8B-Instruct"
        )
    processor.tokenizer.pad_token = processor.tokenizer.pad_token or processor.tokenizer.eos_token
    # Only where to stop is kept of the model's own habits: a repetition penalty would bend the probabilities.
    module.generation_config = GenerationConfig(
        eos_token_id=module.generation_config.eos_token_id, pad_token_id=processor.tokenizer.pad_token_id
    )
    return module.eval().requires_grad_(False), processor


def _stops(module: Any) -> set[int]:
    stops = module.generation_config.eos_token_id
    return set(stops) if isinstance(stops, list) else {stops}
