"""Real encoder classes at tiny size, saved to folders as users have them; weights are random and not small."""

import json
import string

import torch
from safetensors.torch import save_file

LETTERS = [*string.ascii_lowercase, ",", ".", "-"]
VOCABULARY = [*LETTERS, *(c + "</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SENTENCE = "a an red blue green circle square of and two"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *SENTENCE.split()]
SIDE = 32


def images(count=3, height=48, width=40, seed=0):
    """Smooth random pictures whose pixels are whole 8-bit levels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    fine = 0.1 * torch.rand(count, 3, height, width, generator=generator)
    return ((0.9 * smooth + fine) * 255).round() / 255


def shake(module, seed=0, scale=0.15):
    """The same random weights at every run, of a size that makes outputs differ; the logit scale is set to 3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            is_norm = value.ndim == 1 and name.endswith("weight")
            value.copy_(is_norm + scale * torch.randn(value.shape, generator=generator))
            if name.endswith("logit_scale"):
                value.fill_(3.0)
    return module.eval()


def clip_tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab={t: i for i, t in enumerate(VOCABULARY)}, merges=[], model_max_length=77)


def clip_config():
    from transformers import CLIPConfig

    ends = {"bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1, "pad_token_id": 0}
    text = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 77, **ends, **SIZES}
    return CLIPConfig(text_config=text, vision_config={"image_size": SIDE, "patch_size": 8, **SIZES}, projection_dim=24)


def clip_folder(folder, seed=0):
    """A transformers CLIP with its tokenizer and image processor."""
    from transformers import CLIPImageProcessor, CLIPModel

    shake(CLIPModel(clip_config()), seed).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    return folder


def word_tokenizer(pad="[PAD]", **ends):
    """A fast tokenizer of whole words that does not know its greatest length, as SigLIP's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, unk_token="[UNK]", **ends)


def siglip_folder(folder, seed=0, resample=3):
    """A transformers SigLIP with its tokenizer and image processor."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_size": 32, **ends, **SIZES}
    config = SiglipConfig(text_config=text, vision_config={"image_size": SIDE, "patch_size": 8, **SIZES})
    shake(SiglipModel(config), seed).save_pretrained(folder)
    word_tokenizer(pad="[SEP]").save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, resample=resample).save_pretrained(folder)
    return folder


def open_clip_config(tokenizer):
    vision = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 20, "vocab_size": len(VOCABULARY), "width": 32, "heads": 2, "layers": 2}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {**text, "hf_tokenizer_name": str(tokenizer)}}


def open_clip_model(config, seed=0):
    import open_clip

    return shake(open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]), seed)


def open_clip_folder(folder, seed=0, **preprocess):
    """An open_clip model with a tokenizer of transformers, as `local-dir:` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip_config("tokenizer")
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    document = {"model_cfg": config, "preprocess_cfg": {**half, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(open_clip_model(config, seed).state_dict(), folder / "open_clip_model.safetensors")
    clip_tokenizer().save_pretrained(folder)
    return folder


def open_clip_architecture(folder, name):
    """Make an architecture known to open_clip by name, as ViT-H-14 is; returns its config."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    config = open_clip_config(folder / "tokenizer")
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    return config
