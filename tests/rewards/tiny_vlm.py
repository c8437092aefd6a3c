"""A vision-language model of a stock class at tiny size, and an OpenAI-compatible server that answers by it."""

import base64
import io
import json

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from tests.rewards.fault_proxy import Server, response
from visalign.rewards.judge import Question
from visalign.rewards.local_judge import LocalJudge

SENTENCE = (
    "yes no Yes No a the red blue green circle square star is does this show of on and left right "
    "score 1 2 3 4 5 one two three what how many describe image USER: ASSISTANT: SYSTEM: be strict :"
)
WORDS = tuple(SENTENCE.split())
TEMPLATE = (
    "{% for message in messages %}{{ {'system': 'SYSTEM:', 'user': 'USER:', 'assistant': 'ASSISTANT:'}[message.role] }}"
    "{% if message.content is string %} {{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %} MARK{% else %} {{ part.text }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
PATCH, SIDE = 8, 16


def build(folder, seed=0):
    """A LLaVA of 2 layers with random weights, its processor and its chat template, as a folder of transformers."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
    from transformers import LlavaForConditionalGeneration as Llava

    tokenizer = tiny_tokenizer("<image>")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(**language(tokenizer), bos_token_id=None),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("MARK", "<image>"),
    )
    return save(Llava, config, processor, folder, seed)


def build_qwen(folder, seed=0):
    """A Qwen3-VL of 2 layers: pictures keep their shape, and positions have three axes."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers import Qwen3VLForConditionalGeneration as Qwen

    tokenizer = tiny_tokenizer(*QWEN_MARKS)
    start, image, end, video = tokenizer.convert_tokens_to_ids(list(QWEN_MARKS))
    patches = {"patch_size": 4, "temporal_patch_size": 2}
    tower = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        vision_config=tower | patches | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        text_config=language(tokenizer) | {"head_dim": 16, "rope_parameters": rope},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**patches, size={"shortest_edge": 64, "longest_edge": 4096}),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE.replace("MARK", " ".join(QWEN_MARKS[:3])),
    )
    return save(Qwen, config, processor, folder, seed)


def tiny_tokenizer(*marks):
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks], special_tokens=True)
    return tokenizer


def language(tokenizer):
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}
    return sizes | heads | ends


def save(kind, config, processor, folder, seed):
    torch.manual_seed(seed)
    model = kind(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class VlmServer(Server):
    """Chat completions with images, log-probabilities and, as vLLM gives them, those of the prompt."""

    def __init__(self, folder):
        super().__init__()
        self.judge = LocalJudge(str(folder))

    async def handle(self, request):
        body = json.loads(request.body)
        messages = {m["role"]: m["content"] for m in body["messages"]}
        question = Question(
            text="".join(part["text"] for part in messages["user"] if part["type"] == "text"),
            images=tuple(pixels(part) for part in messages["user"] if part["type"] == "image_url"),
            system=messages.get("system", ""),
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_logprobs=body.get("top_logprobs", 0),
            seed=body["seed"],
        )
        if body.get("prompt_logprobs"):
            return response(200, {**completion(""), "prompt_logprobs": self.prompt(question, messages["assistant"])})
        answer = self.judge.ask([question])[0]
        positions = [
            {
                "token": token,
                "logprob": max(top.values()),
                "top_logprobs": [{"token": t, "logprob": v} for t, v in top.items()],
            }
            for token, top in zip(answer.tokens, answer.logprobs, strict=False)
        ]
        return response(200, completion(answer.text, {"content": positions} if positions else None))

    @torch.no_grad()
    def prompt(self, question, continuation):
        """Each token of prompt and continuation with its log-probability, by one unpadded pass over the whole."""
        processor, module = self.judge.processor, self.judge.module
        pictures = [Image.fromarray((i * 255).round().byte().permute(1, 2, 0).numpy()) for i in question.images]
        text = f"USER: {'<image> ' * len(pictures)}{question.text} ASSISTANT: {continuation}"
        inputs = processor(text=text, images=pictures or None, return_tensors="pt")
        tokens = inputs["input_ids"][0]
        logprobs = module(**inputs).logits[0].log_softmax(-1)  # (L, V)
        entries = [None]
        for before, token in zip(logprobs[:-1], tokens[1:], strict=True):
            best = int(before.argmax())
            entries.append(
                {
                    str(int(t)): {"logprob": float(before[t]), "decoded_token": processor.decode([t])}
                    for t in (int(token), best)
                }
            )
        return entries


def pixels(part):
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == "PNG"
    return torch.tensor(list(image.convert("RGB").getdata())).view(image.height, image.width, 3).permute(2, 0, 1) / 255


def completion(text, logprobs=None):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}]}


def same(first, second, tolerance=1e-5):
    """Whether two answers agree; tokens count only where they have probabilities, which not every server tells."""
    told = [(a.text, a.error, a.tokens if a.logprobs else ()) for a in (first, second)]
    tops = [[sorted(top.items()) for top in a.logprobs] for a in (first, second)]
    names = [[name for top in row for name, _ in top] for row in tops]
    numbers = [
        [a.continuation, *(v for top in row for _, v in top)] for a, row in zip((first, second), tops, strict=True)
    ]
    return told[0] == told[1] and names[0] == names[1] and numbers[0] == pytest.approx(numbers[1], abs=tolerance)
