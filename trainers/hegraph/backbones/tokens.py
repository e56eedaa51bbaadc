"""How many tokens a sentence takes of those that CLIP reads."""

from __future__ import annotations

from functools import cache

import open_clip

CONTEXT_LENGTH = 77  # tokens that OpenAI's CLIP reads of a sentence


def count_tokens(sentence: str) -> int:
    """How many of OpenAI's tokens a sentence takes, with its start and end token; CLIP reads `CONTEXT_LENGTH`."""
    return len(_tokenizer().encode(sentence)) + 2


@cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()
