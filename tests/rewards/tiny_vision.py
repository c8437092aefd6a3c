"""Real vision classes at tiny size, saved to a folder; and what the tests of references and detectors share."""

import string

import torch
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    SwinConfig,
)

from visalign.types import Media, Prompts

CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
END = "<|endoftext|>"


def tokenizer():
    words = [*CHARACTERS, *(c + "</w>" for c in CHARACTERS), "<|startoftext|>", END]  # OWL takes id 0 for no query
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=40)


def clip(folder):
    torch.manual_seed(0)
    words = tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = tower | ends | {"vocab_size": len(words), "max_position_embeddings": 40}
    vision = tower | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def dinov2_config(hidden=32, layers=2, heads=2, image=28):
    return Dinov2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, image_size=image, patch_size=14
    )


def dinov2(folder):
    torch.manual_seed(0)
    Dinov2Model(dinov2_config()).save_pretrained(folder)
    return str(folder)


def owlv2(folder):
    """A tiny OWLv2 whose confidences are raised, so that untrained weights detect something."""
    torch.manual_seed(0)
    words = tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = tower | ends | {"vocab_size": len(words), "max_position_embeddings": 40}
    vision = tower | {"image_size": 64, "patch_size": 16}
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32))
    with torch.no_grad():
        model.class_head.logit_shift.bias.fill_(0.5)
    model.save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), words).save_pretrained(folder)
    return str(folder)


def media(count=2, side=32, seed=0):
    return Media.of_images(torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)))


def prompts(*rows):
    return Prompts(tuple("a picture" for _ in rows), rows)


def blip2(folder, placeholder=None):
    """A tiny BLIP-2 for retrieval; `placeholder` is the id that stands for the picture in the text, or None."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=tower | {"image_size": 28, "patch_size": 14, "initializer_range": 0.02},
        qformer_config=tower | {"vocab_size": 200, "max_position_embeddings": 64, "use_qformer_text_input": True},
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=placeholder,
    )
    model = Blip2ForImageTextRetrieval(config)
    with torch.no_grad():
        model.query_tokens.normal_()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def grounding_dino(folder):
    """A tiny Grounding DINO; the model relies on BERT's ids of the special tokens and of the full stop."""
    torch.manual_seed(0)
    words = [f"[unused{i}]" for i in range(1030)]
    for i, word in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}.items():
        words[i] = word
    words += [*string.ascii_lowercase, *("##" + c for c in string.ascii_lowercase)]
    text = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    small = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = GroundingDinoConfig(
        backbone_config=swin.to_dict(),
        text_config=text | {"model_type": "bert", "intermediate_size": 32},
        d_model=64,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        **small,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 160})
    GroundingDinoProcessor(pictures, BertTokenizer(vocab={w: i for i, w in enumerate(words)})).save_pretrained(folder)
    return str(folder)
