"""A tiny Qwen2-VL as a reward's files hold it, a forward pass written out, and the layouts of the released files."""

import torch
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from visalign.rewards.token_head import assemble, renamed

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
PADS = ("<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% else %}<|vision_start|><|{{ c['type'] }}_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN = 32


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=[*SPECIAL[1:2], *SPECIAL[3:], *PADS],
        padding_side="left",
    )


def tiny_base(folder):
    """A base model's folder as the reward reads it: config and processor, no weights."""
    words = tokenizer()
    Qwen2VLProcessor(Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), chat_template=CHAT).save_pretrained(
        folder
    )
    names = {f"{kind}_token_id": words.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    Qwen2VLConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": HIDDEN,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            "bos_token_id": None,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2},
        **names,
    ).save_pretrained(folder)
    return str(folder)


def tiny_model(base, tokens):
    """The generative class with random weights and a vocabulary that `tokens` were added to."""
    torch.manual_seed(1)
    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = len(tokenizer()) + len(tokens)
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name and name.endswith("proj.weight"):
                parameter.mul_(8)  # so that places and pictures matter
    return model


def old_names(state):
    """As transformers before 4.52 wrote them: no `language_model`, and `visual` at the top."""
    return {
        n.replace("model.visual.", "visual.", 1).replace("model.language_model.", "model.", 1): v.clone()
        for n, v in state.items()
    }


def states_at(model, processor, kind, visual, text, tokens):
    """Last hidden states at the tokens, for one row, without padding: embeddings in, positions 0, 1, 2, …"""
    turn = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    sizes = {"do_resize": False, "do_rescale": False} | ({"do_sample_frames": False} if kind == "video" else {})
    batch = processor(text=[prompt], **{f"{kind}s": [visual]}, **sizes, return_tensors="pt")
    pixels = batch["pixel_values" if kind == "image" else "pixel_values_videos"]
    features = model.model.visual(pixels, grid_thw=batch[f"{kind}_grid_thw"]).pooler_output
    ids = batch["input_ids"][0]
    embeds = model.get_input_embeddings()(ids).clone()
    embeds[ids == processor.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")] = features
    hidden = model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state[0]
    return torch.stack([hidden[ids.tolist().index(processor.tokenizer.convert_tokens_to_ids(t))] for t in tokens])


def resized(pictures, height, width):
    wide = F.interpolate(pictures, (pictures.shape[-2], width), mode="bicubic", antialias=True).clamp(0, 1)
    return F.interpolate(wide, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def vision_layout(hidden):
    yield "visual.patch_embed.proj.weight", (1280, 3, 2, 14, 14)
    for i in range(32):
        linear = {"attn.qkv": (3840, 1280), "attn.proj": (1280, 1280), "mlp.fc1": (5120, 1280), "mlp.fc2": (1280, 5120)}
        for name, (out, width) in linear.items():
            yield f"visual.blocks.{i}.{name}.weight", (out, width)
            yield f"visual.blocks.{i}.{name}.bias", (out,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            yield f"visual.blocks.{i}.{name}", (1280,)
    for name, shape in (("ln_q", (1280,)), ("mlp.0", (5120, 5120)), ("mlp.2", (hidden, 5120))):
        yield f"visual.merger.{name}.weight", shape
        yield f"visual.merger.{name}.bias", shape[:1]


def text_layout(hidden, inner, narrow, vocabulary, rank=0):
    yield "lm_head.weight", (vocabulary, hidden)
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for i in range(28):
        yield f"model.layers.{i}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (hidden,)
        for name, (out, width) in shapes.items():
            place = f"model.layers.{i}.{name}"
            held = f"{place}.base_layer" if rank else place
            yield f"{held}.weight", (out, width)
            if name[-6] in "qkv":
                yield f"{held}.bias", (out,)
            if rank:
                yield f"{place}.lora_A.default.weight", (rank, width)
                yield f"{place}.lora_B.default.weight", (out, rank)


def on_meta(layout):
    return {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in layout}


def real_config(hidden, inner, heads, narrow):
    text = {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 28,
        "num_attention_heads": heads,
        "num_key_value_heads": narrow // 128,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": hidden, "num_heads": 16, "mlp_ratio": 4}
    return Qwen2VLConfig(text_config=text, vision_config=vision)


def loads(layout, config, head):
    """Load a file of this layout on the meta device; its size in bytes as bfloat16."""
    state = on_meta(layout)
    model, top = assemble(config, {renamed(n): v for n, v in state.items()}, head, torch.bfloat16)
    assert all(p.device.type == "meta" for p in (*model.parameters(), *top.parameters()))
    assert not any(b.device.type == "meta" for b in model.buffers())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in top.parameters()} == {torch.float32}
    return model, top, 2 * sum(v.numel() for v in state.values())
