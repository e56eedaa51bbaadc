"""Conversion of a frozen CLIP to bfloat16: matrices and convolutions are converted once, not at every call.

Sums, normalisations and the softmax of attention in open_clip's towers stay in float32. This costs no time and leaves a
quarter of the error. Towers of other libraries are converted completely.

Shapes: B images, T tokens of an image, D width.
"""

import logging
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...utils.errors import first_line

logger = logging.getLogger(__name__)

# Whether torch was built with oneDNN (x86), and the CPU has its bfloat16 matrix products
CAN_PACK = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
LEAST_COSINE = 0.9995  # between features of packed and plain layers
QUICK = 1.702  # QuickGELU(x) = x sigmoid(1.702 x)


def to_bfloat16(model: Any) -> None:
    """Convert an open_clip model, in place.

    Args:
        model: Model with its weights, in float32 and evaluation mode, on its device, without gradients.
    """
    scale = model.logit_scale.data  # stays in float32: bfloat16 is too coarse for the factor of all logits
    for tower in (model.visual, getattr(model, "text", model)):
        if isinstance(tower, ModifiedResNet):
            fold_batch_norms(tower)
            convert_matrices(tower)
            tower.to(memory_format=torch.channels_last)
        elif is_plain(tower):
            if tower is model.visual and CAN_PACK and scale.device.type == "cpu" and packs_correctly(tower):
                pack(tower)
            convert_plain(tower)
        else:
            tower.to(torch.bfloat16)
    if isinstance(model, CLIP) and is_plain(model) and model.text_pool_type == "argmax" and model.attn_mask is not None:
        model.encode_text = partial(encode_short, model)
    model.logit_scale.data = scale


def packs_correctly(tower: Any) -> bool:
    """Check that this torch packs a plain image tower as expected, and log a warning if it does not.

    oneDNN's operators are private to torch, and a new version may rename or change them. The check encodes two images
    of noise with a copy of the tower's first and last block, in float32 and packed.
    """
    transformer = tower.transformer
    blocks = transformer.resblocks
    transformer.resblocks = nn.ModuleList(dict.fromkeys([blocks[0], blocks[-1]]))
    sample = deepcopy(tower)
    transformer.resblocks = blocks
    images = torch.randn(2, 3, *tower.image_size, generator=torch.Generator().manual_seed(0))
    expected = sample(images)
    try:
        pack(sample)
        convert_plain(sample)
        cosine = F.cosine_similarity(sample(images.to(torch.bfloat16)).float(), expected).min().item()
        problem = "" if cosine >= LEAST_COSINE else f"cosine {cosine:.4f} with float32, expected {LEAST_COSINE} or more"
    except Exception as error:  # type depends on the change in torch
        problem = first_line(error)
    if problem:
        slower = "images are encoded without packed matrices, about 1.6 times slower"
        logger.warning(
            "oneDNN's bfloat16 operators of torch %s failed a check (%s): %s", torch.__version__, problem, slower
        )
    return not problem


def convert_plain(tower: Any) -> None:
    """Convert a plain tower, packed or not, in place."""
    convert_matrices(tower)
    keep_sums_exact(tower)


def convert_matrices(tower: Any) -> None:
    """Convert the matrices and convolutions of a tower, in place."""
    for module in tower.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
            module.to(torch.bfloat16)
        elif getattr(module, "in_proj_weight", None) is not None:  # open_clip's own `Attention`, from version 4 on
            convert_attention(module)
    for matrix in (getattr(tower, "proj", None), getattr(tower, "text_projection", None)):
        if isinstance(matrix, nn.Parameter):
            matrix.data = matrix.data.to(torch.bfloat16)


def convert_attention(attention: Any) -> None:
    """Convert the projections of open_clip's `Attention`, in place, without its normalisations."""
    for parameter in (attention.in_proj_weight, attention.in_proj_bias):
        if parameter is not None:
            parameter.data = parameter.data.to(torch.bfloat16)


def is_plain(tower: Any) -> bool:
    """Whether a tower is open_clip's own transformer, the architecture of OpenAI's CLIP."""
    blocks = getattr(tower, "transformer", None)
    if not isinstance(blocks, Transformer) or getattr(tower, "attn_pool", None) is not None:
        return False
    return {type(block) for block in blocks.resblocks} == {ResidualAttentionBlock}


def keep_sums_exact(tower: Any) -> None:
    """Make the residual sums of a plain tower float32, and inputs of its matrices bfloat16, in place.

    A sum has the wider type of its terms, so all sums are float32 once the first one is.
    """
    for parent in (tower, *tower.transformer.resblocks):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.LayerNorm):
                setattr(parent, name, ExactNorm(norm, torch.float32 if name == "ln_pre" else torch.bfloat16))
    tower.transformer.get_cast_dtype = lambda: torch.float32  # type of token embeddings, the first terms


def fold_batch_norms(model: nn.Module) -> None:
    """Fold each batch norm of a ResNet into the convolution before it, in place."""
    for parent in list(model.modules()):
        for (before, conv), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(conv, norm))
                setattr(parent, name, nn.Identity())


def pack(tower: Any) -> None:
    """Pack the matrices of a plain image tower, in place."""
    tower.conv1 = PackedPatches(tower.conv1)
    blocks = tower.transformer.resblocks
    for number, block in enumerate(blocks):
        # Image features are the first token alone, so the last block computes no other token
        blocks[number] = PackedBlock(block, tower.pool_type == "tok" and block is blocks[-1])


def encode_short(model: CLIP, tokens: Tensor) -> Tensor:
    """Compute `model.encode_text` without the padding after the longest sentence, which has no effect."""
    ends = tokens.argmax(dim=1)  # the end token has the largest id
    length = int(ends.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x), device=x.device), ends] @ model.text_projection


class ExactNorm(nn.Module):
    """Layer norm computed in float32.

    Args:
        norm: The layer norm.
        dtype: Type of the result.
    """

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(self.dtype)


class PackedLinear(nn.Module):
    """Linear layer without gradient whose matrix is stored in oneDNN's layout, so that no call reorders it.

    Args:
        weight, bias: Parameters in float32, shapes `[out, in]` and `[out]`.
        activation: oneDNN's name of the activation: "none", "gelu" or "swish".
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16))
        self.bias = None if bias is None else bias.detach().to(torch.bfloat16)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.activation, [], "none")


class PackedPatches(nn.Module):
    """Packed convolution of non-overlapping patches, `[B, 3, H, W]` to `[B, D, H', W']`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.size = conv.kernel_size
        self.linear = PackedLinear(conv.weight.flatten(1), conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, self.size[0], self.size[0]).unfold(3, self.size[1], self.size[1])
        return self.linear(patches.permute(0, 2, 3, 1, 4, 5).flatten(3)).permute(0, 3, 1, 2)


class PackedBlock(nn.Module):
    """Block of an image ViT with packed matrices, from `[B, T, D]` to the same shape.

    Args:
        block: Block in float32.
        first: Whether to compute the first token only, `[B, 1, D]`.
    """

    def __init__(self, block: ResidualAttentionBlock, first: bool) -> None:
        super().__init__()
        self.ln_1 = block.ln_1
        self.ln_2 = block.ln_2
        self.ls_1 = block.ls_1
        self.ls_2 = block.ls_2
        attention = block.attn
        self.heads = attention.num_heads
        self.first = first
        weight = attention.in_proj_weight.detach().clone()
        bias = attention.in_proj_bias.detach().clone()
        width = len(weight) // 3  # queries, keys and values
        weight[:width] *= attention.head_dim**-0.5
        bias[:width] *= attention.head_dim**-0.5
        self.into = PackedLinear(weight, bias)
        self.out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias)
        up, activation, down = block.mlp
        if isinstance(activation, QuickGELU):  # swish(1.702 x) / 1.702
            up = PackedLinear(QUICK * up.weight, QUICK * up.bias, "swish")
            self.mlp = nn.Sequential(up, PackedLinear(down.weight / QUICK, down.bias))
        else:
            up = PackedLinear(up.weight, up.bias)
            self.mlp = nn.Sequential(up, activation, PackedLinear(down.weight, down.bias))

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        heads = self.into(self.ln_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.flatten(1, 2)  # each [B * heads, T, D / heads]
        if self.first:
            query = query[:, :1]
            x = x[:, :1]
        weights = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        attended = torch.bmm(weights, value).unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
        x = x + self.ls_1(self.out(attended))
        return x + self.ls_2(self.mlp(self.ln_2(x)))
