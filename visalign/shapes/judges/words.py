"""The tokenizer of `shapes/vlm`: whole words, each with or without a space before it, so that text comes back."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from visalign.shapes.models import vocabulary

SPECIAL = ("<pad>", "<bos>", "<unk>", "<end>", "<image>", "<system>", "<user>", "<assistant>")
PAD, BOS, UNK, END, IMAGE = range(5)
PIECE = r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"
"""A word, a digit or a sign with the space before it, or other white space."""
TEMPLATE = (
    "<bos>{% for message in messages %}<{{ message.role }}>"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}{% endfor %}{% endif %}"
    "<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Turns of a conversation: `<user>`, pictures, text, `<end>`."""

_SLOT = re.compile(r"\{\w+\}")


def pieces(texts: Iterable[str]) -> list[str]:
    """All distinct pieces of texts, slots left out, in alphabetical order.

    Example:
        >>> pieces(["a star, a {shape}"])
        [' a', ' star', ',', 'a']
    """
    found = {piece for text in texts for part in _SLOT.split(text) for piece in re.findall(PIECE, part)}
    return sorted(found - {" "})


def word_list(texts: Sequence[str]) -> dict[str, int]:
    """Numbers of the tokens: special ones, signs and digits, the grammar in all forms, and the words of the texts."""
    grammar = [word for word in vocabulary() if word.isalpha()]
    words = {*grammar, *(word.capitalize() for word in grammar)}
    words |= {piece.strip() for piece in pieces(texts)} - {""}
    words |= {*string.digits, *string.punctuation}
    forms = {*words, *(f" {word}" for word in words), " ", "\n", "\t"}
    return {piece: i for i, piece in enumerate([*SPECIAL, *sorted(forms)])}


def build_words(texts: Sequence[str], context: int) -> PreTrainedTokenizerFast:
    """The tokenizer that knows the words of these texts; all other words become <unk>.

    Args:
        texts: wordings, with slots in braces.
        context: longest conversation in tokens.
    """
    tokenizer = Tokenizer(WordLevel(word_list(texts), unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = Split(Regex(PIECE), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        padding_side="left",
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        unk_token=SPECIAL[UNK],
        eos_token=SPECIAL[END],
        extra_special_tokens=list(SPECIAL[IMAGE:]),
        clean_up_tokenization_spaces=False,
    )
