"""Real architectures against the layouts of their checkpoints; random checkpoints of those layouts against formulas."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tests.rewards import layouts
from tests.rewards.tiny_encoders import VOCABULARY, WORDS, clip_folder, images, siglip_folder, word_tokenizer
from visalign.rewards.aesthetic import LAYERS, Aesthetic
from visalign.rewards.aesthetic_v25 import LAYERS as LAYERS_V25
from visalign.rewards.aesthetic_v25 import AestheticV25
from visalign.rewards.check import check_reward
from visalign.rewards.encoders import dual_encoder, load_exactly
from visalign.rewards.heads import head_of_tensors
from visalign.rewards.imagereward import MEAN, STD, ImageReward, network
from visalign.rewards.mps import CONDITION, MPS
from visalign.rewards.mps_network import CrossModel, cross_sizes
from visalign.rewards.preprocess import Preprocess
from visalign.rewards.weights import source_of
from visalign.types import InputError, Media, Prompts

TEXTS = ("a red circle", "two blue and green square", "an square of and of an")
PROMPTS = Prompts(TEXTS)


def meta(layout):
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def size(layout):
    return sum(math.prod(shape) for shape in layout.values())


def filled(layout, seed=0):
    """A random checkpoint: matrices keep the size of what passes, norms are near one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layout.items():
        is_norm = len(shape) == 1 and name.endswith("weight")
        is_table = "embeddings" in name or "embed" in name.split(".")[-1] or len(shape) < 2
        spread = 0.2 if len(shape) < 2 else 1.0 if is_table else math.prod(shape[1:]) ** -0.5
        tensors[name] = is_norm + spread * torch.randn(shape, generator=generator)
    return tensors


def meta_clip(text, vision, joint, patch=14):
    from transformers import CLIPConfig, CLIPModel

    def tower(sizes, heads):
        names = ("hidden_size", "intermediate_size", "num_hidden_layers")
        return {**dict(zip(names, sizes, strict=True)), "num_attention_heads": heads}

    config = CLIPConfig(
        text_config=tower(text, text[0] // 64),
        vision_config={**tower(vision, 16), "patch_size": patch},
        projection_dim=joint,
    )
    with torch.device("meta"):
        return CLIPModel(config)


@pytest.mark.parametrize(
    ("layout", "sizes", "count"),
    [
        (layouts.CLIP_L, (layouts.L_TEXT, layouts.L_VISION, 768), 427_616_513),
        (layouts.CLIP_H, (layouts.H_TEXT, layouts.H_VISION, 1024), 986_109_441),
    ],
    ids=["clip L/14", "pickscore H/14"],
)
def test_clip_of_transformers(layout, sizes, count):
    assert shapes(meta_clip(*sizes)) == layout
    assert size(layout) == count


def test_hps_is_the_stock_open_clip_h():
    import open_clip

    with torch.device("meta"):
        model = open_clip.create_model("ViT-H-14", device="meta")
    assert shapes(model) == layouts.OPEN_CLIP_H
    assert size(layouts.OPEN_CLIP_H) == 986_109_441


def test_siglip_of_aesthetic_v25():
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision = {"image_size": 384, "patch_size": 14, **tower}
    with torch.device("meta"):
        model = SiglipModel(SiglipConfig(text_config={"projection_size": 1152, **tower}, vision_config=vision))
    assert shapes(model) == layouts.SO400M
    assert size(layouts.SO400M) == pytest.approx(0.878e9, rel=0.002)


def test_mps_takes_its_layout_whole():
    layout = {name.replace(".fn.", "."): shape for name, shape in layouts.MPS.items()}
    assert cross_sizes(meta(layout)) == (4, 1024, 1024, 64, 4096)
    with torch.device("meta"):
        cross = CrossModel(4, 1024, 1024, 64, 4096)
    module = torch.nn.ModuleDict({"model": meta_clip(layouts.H_TEXT, layouts.H_VISION, 1024), "cross_model": cross})
    load_exactly(module, meta(layout), "MPS_overall.pth")
    assert size(shapes(module)) == pytest.approx(1.10e9, rel=0.01)
    with pytest.raises(InputError, match=r"to_kv\.weight"):
        load_exactly(module, {k: v for k, v in meta(layout).items() if "to_kv" not in k}, "MPS_overall.pth")


def test_imagereward_takes_its_layout_whole():
    with torch.device("meta"):
        parts = network(meta(layouts.IMAGE_REWARD), "ImageReward.pt")
    used = [name for name in layouts.IMAGE_REWARD if "_proj." not in name and "position_ids" not in name]
    assert len(parts.state_dict()) == len(used)
    assert size(shapes(parts)) == sum(math.prod(layouts.IMAGE_REWARD[name]) for name in used)
    assert size(shapes(parts)) == pytest.approx(0.446e9, rel=0.02)
    config = parts["vision"].config
    assert (config.image_size, config.patch_size, config.num_attention_heads) == (224, 16, 16)
    assert (parts["text"].config.num_attention_heads, parts["text"].config.num_hidden_layers) == (12, 12)


def test_imagereward_says_what_is_missing():
    left_out = {k: v for k, v in meta(layouts.IMAGE_REWARD).items() if "blocks.7.attn.proj" not in k}
    with torch.device("meta"), pytest.raises(InputError, match=r"layers\.7\.self_attn\.projection"):
        network(left_out, "ImageReward.pt")
    with pytest.raises(InputError, match="no checkpoint of ImageReward"):
        network({"weight": torch.zeros(1)}, "other.pt")


@pytest.mark.parametrize(
    ("widths", "prefix", "places", "folder"),
    [
        (LAYERS, "layers.", (0, 2, 4, 6, 7), clip_folder),
        (LAYERS_V25, "scoring_head.", (0, 2, 4, 6, 8), siglip_folder),
    ],
    ids=["v2", "v2.5"],
)
def test_aesthetic_heads(widths, prefix, places, folder, tmp_path):
    real = head_of_tensors(filled(layouts.aesthetic_head(widths, prefix, places)), "x", "head.pth")
    assert real.widths == widths
    encoder = str(folder(tmp_path / "siglip"))
    width = dual_encoder(encoder).images(images(1)).shape[1]
    tensors = filled(layouts.aesthetic_head((width, *widths[1:]), prefix, places), seed=2)
    torch.save(tensors, tmp_path / "head.pth")
    reward = (Aesthetic if prefix == "layers." else AestheticV25)(encoder, str(tmp_path / "head.pth"))
    media = Media.of_images(images(3))
    x = dual_encoder(encoder).images(media.images)
    for place in places:
        x = x @ tensors[f"{prefix}{place}.weight"].T + tensors[f"{prefix}{place}.bias"]
    assert torch.allclose(reward.score(media, PROMPTS).values, x[:, 0], atol=1e-5)
    check_reward(reward, media, PROMPTS)


def rotary(x):
    """Rotary positions as complex numbers whose parts lie half a width apart."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]).double(), 10000.0 ** (-torch.arange(half).double() / half))
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat([turned.real, turned.imag], -1).float()


def mps_by_hand(tensors, clip, pixels, tokens, condition):
    """The score of one image for one prompt, from the checkpoint's tensors."""
    with torch.no_grad():
        found, conditions = (clip.text_model(input_ids=ids) for ids in (tokens, condition))
        text = clip.text_projection(found.last_hidden_state)[0]
        like = (text @ clip.text_projection(conditions.last_hidden_state)[0].T).max(1).values
        kept = text[like / like.max() > 0.3]
        assert 0 < len(kept) < 77
        x = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)[0]
        for i in range(2):
            at = lambda block, name, i=i: tensors[f"mps.cross_model.layers.{i}.{block}.fn.{name}"]
            normed = [F.layer_norm(x, x.shape[-1:], at(0, "norm.weight"), at(0, "norm.bias"))]
            keys, values = (kept @ at(0, "to_kv.weight").T).split(16, -1)
            heads = [
                torch.softmax(q @ keys.T / 4, -1) @ values for q in (normed[0] @ at(0, "to_q.weight").T).split(16, -1)
            ]
            first, gate = (normed[0] @ at(0, "ff.0.weight").T).split(40, -1)
            x = x + torch.cat(heads, -1) @ at(0, "to_out.weight").T + (F.silu(gate) * first) @ at(0, "ff.2.weight").T
            normed = F.layer_norm(x, x.shape[-1:], at(1, "norm.weight"), at(1, "norm.bias"))
            parts = (normed @ at(1, "fused_attn_ff_proj.weight").T).split((48, 16, 16, 80), -1)
            keys = rotary(parts[1])
            heads = [torch.softmax(rotary(q) @ keys.T / 4, -1) @ parts[2] for q in parts[0].split(16, -1)]
            first, gate = parts[3].split(40, -1)
            x = x + torch.cat(heads, -1) @ at(1, "attn_out.weight").T
            x = x + (F.silu(gate) * first) @ at(1, "ff_out.1.weight").T
        end = clip.text_projection(found.pooler_output)[0]
        return clip.logit_scale.exp() * F.cosine_similarity(x[0], end, dim=0)


def test_mps_scores_as_its_formula(tmp_path):
    from transformers import AutoTokenizer, CLIPModel

    processor = clip_folder(tmp_path / "clip", seed=7)
    clip = CLIPModel.from_pretrained(processor).eval()
    strength = torch.tensor([20.0, *[1.0] * 23])  # on one axis tokens differ in size, and some do not count
    clip.text_projection.weight.data *= strength[:, None]
    clip.save_pretrained(processor)
    cross = filled(layouts.under("mps.", layouts.mps_cross(2, 24, 48, 16, 40)), seed=8)
    clip_part = {f"mps.model.{k}": v for k, v in load_file(processor / "model.safetensors").items()}
    save_file(clip_part | cross, tmp_path / "model.safetensors")
    reward, media = MPS(str(tmp_path), processor=str(processor)), Media.of_images(images(3, 32, 32))
    tokenizer = AutoTokenizer.from_pretrained(processor)
    ids = [tokenizer(t, padding="max_length", truncation=True, return_tensors="pt").input_ids for t in TEXTS]
    condition = tokenizer(CONDITION, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ready = Preprocess(32)(media.images)
    expected = [mps_by_hand(cross, clip, ready[i : i + 1], ids[i], condition) for i in range(3)]
    values = reward.score(media, PROMPTS).values
    assert torch.allclose(values, torch.stack(expected), atol=1e-3)
    assert float(values.std()) > 0.05
    check_reward(reward, media, PROMPTS)


def attention(q, k, v, heads):
    split = [x.unflatten(-1, (heads, -1)) for x in (q, k, v)]
    logits = torch.einsum("nhd,mhd->hnm", split[0], split[1]) / split[0].shape[-1] ** 0.5
    return torch.einsum("hnm,mhd->nhd", logits.softmax(-1), split[2]).flatten(1)


def blip_by_hand(tensors, pixels, ids):
    """ImageReward of one image for the unpadded token ids of one prompt, from the checkpoint's tensors."""

    def lin(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name, x, eps):
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    see, read = "blip.visual_encoder", "blip.text_encoder"
    patches = F.conv2d(pixels, tensors[f"{see}.patch_embed.proj.weight"], tensors[f"{see}.patch_embed.proj.bias"], 16)
    x = torch.cat([tensors[f"{see}.cls_token"][0], patches[0].flatten(1).T]) + tensors[f"{see}.pos_embed"][0]
    for i in range(2):
        at = f"{see}.blocks.{i}"
        x = x + lin(f"{at}.attn.proj", attention(*lin(f"{at}.attn.qkv", norm(f"{at}.norm1", x, 1e-6)).chunk(3, -1), 2))
        x = x + lin(f"{at}.mlp.fc2", F.gelu(lin(f"{at}.mlp.fc1", norm(f"{at}.norm2", x, 1e-6))))
    image = norm(f"{see}.norm", x, 1e-6)
    words = tensors[f"{read}.embeddings.word_embeddings.weight"][ids]
    places = tensors[f"{read}.embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(f"{read}.embeddings.LayerNorm", words + places, 1e-12)
    for i in range(2):
        at = f"{read}.encoder.layer.{i}"
        for name, other in (("attention", None), ("crossattention", image)):
            source = x if other is None else other
            q, k, v = (lin(f"{at}.{name}.self.{p}", s) for p, s in (("query", x), ("key", source), ("value", source)))
            x = norm(
                f"{at}.{name}.output.LayerNorm", x + lin(f"{at}.{name}.output.dense", attention(q, k, v, 1)), 1e-12
            )
        wide = F.gelu(lin(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + lin(f"{at}.output.dense", wide), 1e-12)
    for place in (0, 2, 4, 6, 7):
        x = lin(f"mlp.layers.{place}", x)
    return (x[0, 0] - MEAN) / STD


def test_imagereward_scores_as_its_formula(tmp_path):
    layout = layouts.image_reward(
        (64, 96, 2), (128, 160, 2), vocabulary=len(WORDS), length=40, side=64, head=(64, 32, 16, 8, 4, 1)
    )
    tensors = filled(layout, seed=3)
    torch.save(tensors, tmp_path / "ImageReward.pt")
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    reward = ImageReward(str(tmp_path), tokenizer=str(tmp_path / "tokenizer"))
    media = Media.of_images(images(3, 64, 64))
    ready = Preprocess(64)(media.images)
    ids = [[2, *(WORDS.index(w) for w in text.split()), 3] for text in TEXTS]
    expected = torch.stack([blip_by_hand(tensors, ready[i : i + 1], ids[i]) for i in range(3)])
    values = reward.score(media, PROMPTS).values
    assert torch.allclose(values, expected, atol=1e-4)
    assert float(values.std()) > 0.05
    check_reward(reward, Media.of_images(images(3, 80, 70)), PROMPTS)
    assert torch.equal(reward.score(reward.prepare(media), PROMPTS).values, values)


def test_imagereward_reads_the_prompt_and_cuts_it_at_35_tokens(tmp_path):
    layout = layouts.image_reward(
        (64, 96, 1), (64, 96, 1), vocabulary=len(WORDS), length=40, side=64, head=(64, 32, 16, 8, 4, 1)
    )
    save_file(filled(layout, seed=4), tmp_path / "ImageReward.safetensors")
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    file = str(tmp_path / "ImageReward.safetensors")
    reward = ImageReward(weights=file, tokenizer=str(tmp_path / "tokenizer"))
    media = Media.of_images(images(1, 64, 64).repeat(3, 1, 1, 1))
    long = "a red circle and " * 20
    first, same, other = reward.score(media, Prompts((long, long + "green square", "green square"))).values
    assert first == pytest.approx(float(same), abs=1e-5)
    assert float((first - other).abs()) > 1e-3


def test_tiny_sizes_differ_from_the_real_ones_in_numbers_only(tmp_path):
    tiny = load_file(clip_folder(tmp_path / "clip") / "model.safetensors")
    layout = layouts.transformers_clip((32, 48, 2), (32, 48, 2), 24, len(VOCABULARY), 77, 32, 8)
    assert {k: tuple(v.shape) for k, v in tiny.items()} == layout


def test_a_judge_that_is_not_made_yet_says_how_it_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr("visalign.shapes.FOLDER", tmp_path)
    with pytest.raises(InputError, match="`visalign shapes judges hpsv3 --out FOLDER` makes it"):
        source_of("shapes/hpsv3")
    with pytest.raises(InputError, match="unknown shapes judge"):
        source_of("shapes/nothing")
