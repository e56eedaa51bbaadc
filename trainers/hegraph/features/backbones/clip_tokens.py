"""Number of tokens that CLIP's text encoder reads of a sentence."""

from functools import cache

from open_clip import SimpleTokenizer

CONTEXT_LENGTH = 77  # tokens of a sentence, longer ones are cut


def count_tokens(sentence: str) -> int:
    """Number of OpenAI's tokens in a sentence, with start and end token."""
    return len(_openai_tokenizer().encode(sentence)) + 2


_openai_tokenizer = cache(SimpleTokenizer)
