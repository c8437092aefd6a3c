"""Parameter names and shapes of the checkpoints that rewards load, written out by hand from their papers' code."""

from itertools import pairwise


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def merge(*parts):
    return {name: shape for part in parts for name, shape in part.items()}


def under(prefix, layout):
    return {f"{prefix}{name}": shape for name, shape in layout.items()}


def transformers_layer(width, hidden):
    attention = merge(*[linear(f"self_attn.{p}_proj", width, width) for p in ("q", "k", "v", "out")])
    mlp = merge(linear("mlp.fc1", hidden, width), linear("mlp.fc2", width, hidden))
    return merge(attention, mlp, norm("layer_norm1", width), norm("layer_norm2", width))


def stack(name, depth, layer):
    return merge(*[under(f"{name}.{i}.", layer) for i in range(depth)])


def transformers_clip(text, vision, joint, vocabulary=49408, length=77, side=224, patch=14):
    """CLIPModel; `text` and `vision` are (width, hidden, depth)."""
    (tw, th, td), (vw, vh, vd) = text, vision
    return merge(
        {"logit_scale": (), "text_projection.weight": (joint, tw), "visual_projection.weight": (joint, vw)},
        {"text_model.embeddings.token_embedding.weight": (vocabulary, tw)},
        {"text_model.embeddings.position_embedding.weight": (length, tw)},
        stack("text_model.encoder.layers", td, transformers_layer(tw, th)),
        norm("text_model.final_layer_norm", tw),
        {"vision_model.embeddings.class_embedding": (vw,)},
        {"vision_model.embeddings.patch_embedding.weight": (vw, 3, patch, patch)},
        {"vision_model.embeddings.position_embedding.weight": ((side // patch) ** 2 + 1, vw)},
        norm("vision_model.pre_layrnorm", vw),
        stack("vision_model.encoder.layers", vd, transformers_layer(vw, vh)),
        norm("vision_model.post_layernorm", vw),
    )


def siglip(width, hidden, depth, vocabulary=32000, length=64, side=384, patch=14):
    """SiglipModel with towers of equal size, biased patches and an attention pool."""
    pool = "vision_model.head"
    return merge(
        {"logit_scale": (1,), "logit_bias": (1,)},
        {"text_model.embeddings.token_embedding.weight": (vocabulary, width)},
        {"text_model.embeddings.position_embedding.weight": (length, width)},
        stack("text_model.encoder.layers", depth, transformers_layer(width, hidden)),
        norm("text_model.final_layer_norm", width),
        linear("text_model.head", width, width),
        {"vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch)},
        {"vision_model.embeddings.patch_embedding.bias": (width,)},
        {"vision_model.embeddings.position_embedding.weight": ((side // patch) ** 2, width)},
        stack("vision_model.encoder.layers", depth, transformers_layer(width, hidden)),
        norm("vision_model.post_layernorm", width),
        {f"{pool}.probe": (1, 1, width), f"{pool}.attention.in_proj_weight": (3 * width, width)},
        {f"{pool}.attention.in_proj_bias": (3 * width,)},
        linear(f"{pool}.attention.out_proj", width, width),
        norm(f"{pool}.layernorm", width),
        merge(linear(f"{pool}.mlp.fc1", hidden, width), linear(f"{pool}.mlp.fc2", width, hidden)),
    )


def open_clip_layer(width, hidden):
    return merge(
        {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)},
        linear("attn.out_proj", width, width),
        norm("ln_1", width),
        norm("ln_2", width),
        linear("mlp.c_fc", hidden, width),
        linear("mlp.c_proj", width, hidden),
    )


def open_clip(text, vision, joint, vocabulary=49408, length=77, side=224, patch=14):
    """open_clip's CLIP; `text` and `vision` are (width, hidden, depth)."""
    (tw, th, td), (vw, vh, vd) = text, vision
    return merge(
        {"logit_scale": (), "positional_embedding": (length, tw), "text_projection": (tw, joint)},
        {"token_embedding.weight": (vocabulary, tw)},
        stack("transformer.resblocks", td, open_clip_layer(tw, th)),
        norm("ln_final", tw),
        {"visual.class_embedding": (vw,), "visual.proj": (vw, joint), "visual.conv1.weight": (vw, 3, patch, patch)},
        {"visual.positional_embedding": ((side // patch) ** 2 + 1, vw)},
        norm("visual.ln_pre", vw),
        stack("visual.transformer.resblocks", vd, open_clip_layer(vw, vh)),
        norm("visual.ln_post", vw),
    )


def mps_cross(depth, width, inner, head, hidden):
    """The cross-attention network of MPS, with the buffers that its checkpoint holds."""
    cross = {
        "fn.to_q.weight": (inner, width),
        "fn.to_kv.weight": (2 * head, width),
        "fn.to_out.weight": (width, inner),
        "fn.ff.0.weight": (2 * hidden, width),
        "fn.ff.2.weight": (width, hidden),
    }
    itself = {
        "fn.rotary_emb.inv_freq": (head // 2,),
        "fn.fused_attn_ff_proj.weight": (inner + 2 * head + 2 * hidden, width),
        "fn.attn_out.weight": (width, inner),
        "fn.ff_out.1.weight": (width, hidden),
    }
    pair = merge(under("0.", cross | norm("fn.norm", width)), under("1.", itself | norm("fn.norm", width)))
    return stack("cross_model.layers", depth, pair)


def bert_attention(name, width, into):
    inside = merge(linear(f"{name}.self.query", width, width), linear(f"{name}.self.key", width, into))
    inside |= linear(f"{name}.self.value", width, into) | linear(f"{name}.output.dense", width, width)
    return inside | norm(f"{name}.output.LayerNorm", width)


def image_reward(text, vision, vocabulary=30524, length=512, side=224, patch=16, head=(768, 1024, 128, 64, 16, 1)):
    """ImageReward's BLIP and head; `text` and `vision` are (width, hidden, depth)."""
    (tw, th, td), (vw, vh, vd) = text, vision
    block = norm("norm1", vw) | linear("attn.qkv", 3 * vw, vw) | linear("attn.proj", vw, vw) | norm("norm2", vw)
    block |= linear("mlp.fc1", vh, vw) | linear("mlp.fc2", vw, vh)
    layer = bert_attention("attention", tw, tw) | bert_attention("crossattention", tw, vw)
    layer |= linear("intermediate.dense", th, tw) | linear("output.dense", tw, th) | norm("output.LayerNorm", tw)
    words = {"word_embeddings.weight": (vocabulary, tw), "position_embeddings.weight": (length, tw)}
    places = {"position_ids": (1, length)}
    patches = {"cls_token": (1, 1, vw), "pos_embed": (1, (side // patch) ** 2 + 1, vw)}
    patches |= {"patch_embed.proj.weight": (vw, 3, patch, patch), "patch_embed.proj.bias": (vw,)}
    return merge(
        under("blip.visual_encoder.", patches | stack("blocks", vd, block) | norm("norm", vw)),
        under("blip.text_encoder.embeddings.", words | places | norm("LayerNorm", tw)),
        under("blip.text_encoder.", stack("encoder.layer", td, layer)),
        linear("blip.vision_proj", 256, vw),
        linear("blip.text_proj", 256, tw),
        aesthetic_head(head, "mlp.layers."),
    )


def aesthetic_head(widths, prefix="layers.", places=(0, 2, 4, 6, 7)):
    pairs = zip(places, pairwise(widths), strict=True)
    return merge(*[linear(f"{prefix}{place}", b, a) for place, (a, b) in pairs])


H_TEXT, H_VISION, L_TEXT, L_VISION = (1024, 4096, 24), (1280, 5120, 32), (768, 3072, 12), (1024, 4096, 24)
CLIP_H = transformers_clip(H_TEXT, H_VISION, 1024)
CLIP_L = transformers_clip(L_TEXT, L_VISION, 768)
OPEN_CLIP_H = open_clip(H_TEXT, H_VISION, 1024)
SO400M = siglip(1152, 4304, 27)
IMAGE_REWARD = image_reward((768, 3072, 12), (1024, 4096, 24))
MPS = merge(under("model.", CLIP_H), mps_cross(4, 1024, 1024, 64, 4096))
