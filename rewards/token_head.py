"""Vision-language models with a trained head: the state at special tokens of the prompt becomes scores.

HPSv3 and VideoAlign are of this kind: a Qwen2-VL with a few tokens more, and a small head on its last hidden state.
Their files hold the whole model, so that of the base model only the config and the processor are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn

from visalign.rewards.base import Weights
from visalign.rewards.preprocess import resize
from visalign.rewards.weights import fetch, read_tensors, source_of
from visalign.types import InputError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BETWEEN: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "dropout": nn.Identity}
READY: dict[str, dict[str, bool]] = {
    "image": {"do_resize": False, "do_rescale": False},
    "video": {"do_resize": False, "do_rescale": False, "do_sample_frames": False, "cap_pixels_per_frame": False},
}
EMBEDDINGS = "language_model.embed_tokens.weight"
_shared: WeakValueDictionary[tuple[str, str, Head, str], TokenHead] = WeakValueDictionary()


@dataclass(frozen=True)
class Head:
    """What was trained on top of a base model, as data.

    Attributes:
        tokens: special tokens that the vocabulary gained, in order; the state at each of them is read. With none, the
            state at the last token is.
        layers: the head: widths of linear layers, `relu` and `dropout`; a single width is one layer without a number in
            its name. A width of 0 is as large as in the file.
        bias: of the linear layers.
        alpha: of the LoRA adapters in the file; their places and rank are read from it.
    """

    tokens: tuple[str, ...]
    layers: tuple[int | str, ...]
    bias: bool = True
    alpha: int = 0


def build_head(hidden: int, head: Head, width: int = 1) -> nn.Module:
    """The head's layers over states of `hidden` numbers; a width of 0 becomes `width`.

    Example:
        >>> list(build_head(8, Head((), (4, "relu", 2))).state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    modules: list[nn.Module] = []
    for layer in head.layers:
        if isinstance(layer, str):
            modules.append(BETWEEN[layer]())
        else:
            modules.append(nn.Linear(hidden, layer or width, bias=head.bias))
            hidden = layer or width
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def renamed(name: str) -> str:
    """A name of a checkpoint, written by transformers before or after 4.52 and with or without peft, in today's terms.

    Example:
        >>> renamed("visual.merger.ln_q.weight"), renamed("base_model.model.model.norm.weight")
        ('visual.merger.ln_q.weight', 'language_model.norm.weight')
    """
    name = name.removeprefix("base_model.model.")
    if name.startswith(("rm_head.", "lm_head.")):
        return name
    name = name.removeprefix("model.")
    return name if name.startswith(("visual.", "language_model.")) else f"language_model.{name}"


def adapted(model: nn.Module, names: Mapping[str, Tensor], alpha: int) -> nn.Module:
    """The model with LoRA layers where the file has them.

    They stay live, as they were trained: merged into bfloat16 weights, they would be rounded.
    """
    ranks = {n.removesuffix(".lora_A.default.weight"): len(v) for n, v in names.items() if ".lora_A." in n}
    if not ranks:
        return model
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=max(ranks.values()), lora_alpha=alpha, target_modules=list(ranks))
    return inject_adapter_in_model(config, model, low_cpu_mem_usage=True)


def assemble(config: Any, state: Mapping[str, Tensor], head: Head, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Base model and head that hold the tensors of a file; no other weights are made.

    Args:
        config: the base model's; its vocabulary is set to the file's.
        state: tensors under today's names (`renamed`).
        head: what was trained.
        dtype: of the base model; the head is float32.

    Raises:
        InputError: names or shapes are not those of the model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModel

    top = {n.removeprefix("rm_head."): v.float() for n, v in state.items() if n.startswith("rm_head.")}
    body = {n: v.to(dtype) for n, v in state.items() if not n.startswith(("rm_head.", "lm_head."))}
    if EMBEDDINGS not in body or not top:
        raise InputError(
            f"the file holds no Qwen-VL with a reward head: {EMBEDDINGS} or rm_head is missing among "
            f"{', '.join(list(state)[:3]) or 'nothing'}. Give the checkpoint that the reward names"
        )
    text = config.get_text_config()
    text.vocab_size = len(body[EMBEDDINGS])
    with init_empty_weights():
        model = adapted(AutoModel.from_config(config), body, head.alpha)
        layers = build_head(text.hidden_size, head, width=len(next(iter(top.values()))))
    try:
        model.load_state_dict(body, assign=True)
        layers.load_state_dict(top, assign=True)
    except RuntimeError as error:
        raise InputError(f"the file does not fit the base model: {error!s:.400}") from None
    return model.eval().requires_grad_(False), layers.eval().requires_grad_(False)


def token_positions(ids: Tensor, tokens: Tensor) -> Tensor:
    """Where each of T tokens stands first in each row, (B, T), of ids (B, L)."""
    return (ids[:, None] == tokens[:, None]).int().argmax(-1)


def last_positions(mask: Tensor) -> Tensor:
    """Where the last token of each row stands, (B, 1), of a right-padded mask (B, L)."""
    return mask.sum(1, keepdim=True) - 1


def read_template(path: str | None, own: str, tokens: Sequence[str]) -> str:
    """The text that a prompt is put into: a file's, or our own.

    Raises:
        InputError: the file cannot be read, or does not hold `{prompt}` and each special token exactly once.
    """
    try:
        template = own if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the template {path!r} cannot be read: {error}") from None
    wrong = [part for part in ("{prompt}", *tokens) if template.count(part) != 1]
    if wrong:
        raise InputError(f"the template {path!r} holds {', '.join(wrong)} not exactly once; write each of them once")
    return template


def filled(template: str, prompt: str) -> str:
    """The template with a prompt in it, whose special tokens are made plain text: no prompt can move the reading.

    Example:
        >>> filled("Text: {prompt} <|Reward|>", "a <|Reward|> cat")
        'Text: a < |Reward|> cat <|Reward|>'
    """
    return template.replace("{prompt}", prompt.replace("<|", "< |"))


def weights_of(model: str, weights: Weights, override: str | None) -> Path:
    """The trained file: the override, the one beside the base model's config if it has the head, or the hub's."""
    beside = Path(source_of(model)) / "model.safetensors"
    if override is None and beside.is_file():
        with safe_open(beside, "pt") as file:
            override = str(beside) if any(name.startswith("rm_head.") for name in file.keys()) else None  # noqa: SIM118
    return fetch(weights, override)


def token_head(model: str, weights: Weights, override: str | None, head: Head, dtype: str) -> TokenHead:
    """A loaded model; the same object while anyone holds it.

    Args:
        model: the base model's folder or hub id, for its config and processor.
        weights: the trained file.
        override: a local file in its place.
        head: what was trained.
        dtype: `bfloat16`, `float16` or `float32`, of the base model; the head is float32.

    Raises:
        InputError: one of these is not found, or they do not fit together.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} came; allowed are {', '.join(DTYPES)}")
    path = weights_of(model, weights, override)
    key = (model, str(path), head, dtype)
    loaded = _shared.get(key)
    if loaded is None:
        loaded = _shared[key] = TokenHead(model, path, head, DTYPES[dtype])
    return loaded


class TokenHead:
    """A loaded base model with its head, and the processor that feeds it.

    Attributes:
        factor: sides of pictures are multiples of it.
        largest: pixels of the largest picture that the processor allows.
    """

    def __init__(self, model: str, path: Path, head: Head, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoProcessor

        try:
            config = AutoConfig.from_pretrained(source_of(model))
            self.processor: Any = AutoProcessor.from_pretrained(source_of(model))
        except (OSError, ValueError) as error:
            raise InputError(f"the base model {model!r} cannot be loaded: {error}") from error
        tokenizer, images = self.processor.tokenizer, self.processor.image_processor
        tokenizer.padding_side = "right"
        tokenizer.add_tokens(list(head.tokens), special_tokens=True)
        self.tokens = torch.tensor(tokenizer.convert_tokens_to_ids(list(head.tokens)), dtype=torch.long)
        self.factor = images.patch_size * images.merge_size
        self.largest: int = images.size["longest_edge"]
        state = {renamed(name): tensor for name, tensor in read_tensors(path).items()}
        self.model, self.head = assemble(config, state, head, dtype)
        rows = config.get_text_config().vocab_size
        if rows != len(tokenizer):
            raise InputError(
                f"{path.name} has {rows} tokens, but the tokenizer of {model!r} with the special tokens has "
                f"{len(tokenizer)}; give the base model that it was trained on"
            )

    def fitted(self, pictures: Tensor, low: int, high: int) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] at about `low` to `high` pixels, in multiples of `factor`; gradients pass.

        Where the processor allows less than `low` or `high`, as that of a small model does, its limit is taken.
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        height, width = pictures.shape[-2:]
        limits = {"min_pixels": min(low, self.largest), "max_pixels": min(high, self.largest)}
        size = smart_resize(height, width, factor=self.factor, **limits)
        return resize(pictures.float(), *size)

    def inputs(
        self, visuals: Sequence[Tensor], texts: Sequence[str], kind: Literal["image", "video"]
    ) -> dict[str, Tensor]:
        """What the base model is given for B user turns of one picture (3, H, W) or video (F, 3, H, W), then text."""
        turns = [[{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}] for text in texts]
        prompts = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        given = {f"{kind}s": list(visuals)} | READY[kind]
        batch = self.processor(text=prompts, **given, padding=True, return_tensors="pt").to(visuals[0].device)
        return {name: tensor for name, tensor in batch.items() if name != "mm_token_type_ids"}

    def __call__(self, visuals: Sequence[Tensor], texts: Sequence[str], kind: Literal["image", "video"]) -> Tensor:
        """Outputs of the head at each special token, (B, T, width) float32; gradients pass to the pixels."""
        return self.head.to(visuals[0].device)(self.states(visuals, texts, kind).float())

    def states(self, visuals: Sequence[Tensor], texts: Sequence[str], kind: Literal["image", "video"]) -> Tensor:
        """Last hidden states at each special token, (B, T, D); gradients pass to the pixels."""
        batch = self.inputs(visuals, texts, kind)
        device = batch["input_ids"].device
        self.model.to(device)
        # The trained forward handed embeddings over, and transformers then counts 0, 1, 2, … in place of M-RoPE.
        plain = torch.arange(batch["input_ids"].shape[1], device=device).expand_as(batch["input_ids"])
        states = self.model(**batch, position_ids=plain, use_cache=False).last_hidden_state  # (B, L, D)
        places = (
            token_positions(batch["input_ids"], self.tokens.to(device))
            if len(self.tokens)
            else last_positions(batch["attention_mask"])
        )
        rows = torch.arange(len(places), device=device)[:, None]
        return states[rows, places]
