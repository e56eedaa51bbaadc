"""CoOp's context goes through the text tower as words would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP

from trainers.hegraph.utils.errors import UserError

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 1}
WORDS = ["a photo of a cat.", "a photo of a hot dog."]
PLACEHOLDERS = ["X X X X cat.", "X X X X hot dog."]


@pytest.fixture(scope="module", params=["plain", "custom"])
def backbone(request, mini):
    """mini, a plain CLIP, and a model whose text tower is a module of its own."""
    if request.param == "plain":
        return mini
    torch.manual_seed(0)
    model = CustomTextCLIP(32, VISION, TEXT).eval().requires_grad_(False)
    return replace(mini, model=model)


def embed(backbone, sentence: str) -> torch.Tensor:
    """The embeddings of the four tokens after the start."""
    tower = getattr(backbone.model, "text", backbone.model)
    return tower.token_embedding(backbone.tokenizer([sentence]))[0, 1:5]


def test_a_context_of_words_embeddings_gives_the_features_of_the_words_and_alone_gets_a_gradient(backbone):
    context = embed(backbone, WORDS[0]).clone().requires_grad_()
    found = backbone.encode_with_context(backbone.context_tokens(PLACEHOLDERS, 4), context)
    torch.testing.assert_close(found, backbone.encode_text(WORDS), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, backbone.encode_text(PLACEHOLDERS), atol=1e-3)
    found[0, 0].backward()
    assert (context.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_a_tokenizer_that_starts_without_a_start_token_is_refused(mini):
    other = replace(mini, tokenizer=lambda sentences: F.pad(mini.tokenizer(sentences)[:, 1:], (0, 1)))
    with pytest.raises(UserError, match="the tokenizer of .* is not CLIP's"):
        other.context_tokens(PLACEHOLDERS, 4)


def test_a_text_tower_that_is_not_open_clips_is_refused(mini):
    model = torch.nn.Module()
    model.text = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="is not one of open_clip's own"):
        _ = replace(mini, model=model).token_embedding
