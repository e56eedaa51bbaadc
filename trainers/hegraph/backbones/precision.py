"""Makes bfloat16 of a frozen CLIP: matrices and convolutions are converted, once, and not operations at every call.

What the blocks of open_clip's towers add up and all their normalisations stay in float32, which takes no time and
leaves a quarter of the error. Attention sums in float32 as well, inside of torch. Towers of other libraries are
converted whole.

Shapes: B images, T tokens of one, D width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CAN_PACK = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # a torch with oneDNN, as for x86


def to_bfloat16(model: Any) -> None:
    """Converts an open_clip model, in place.

    Args:
        model: In float32 and evaluation mode, on its device, with its weights, none of which takes a gradient.
    """
    scale = model.logit_scale.data  # stays in float32: bfloat16 has three digits, and it multiplies all logits
    for tower in (model.visual, getattr(model, "text", model)):
        if isinstance(tower, ModifiedResNet):
            fold_batch_norms(tower)
            convert_matrices(tower)
            tower.to(memory_format=torch.channels_last)
        elif is_plain(tower):
            convert_matrices(tower)
            keep_sums_exact(tower)
            if tower is model.visual and CAN_PACK and scale.device.type == "cpu":
                for block in tower.transformer.resblocks:
                    block.attn = PackedAttention(block.attn)
                    block.mlp.c_fc, block.mlp.c_proj = map(PackedLinear.of, (block.mlp.c_fc, block.mlp.c_proj))
        else:
            tower.to(torch.bfloat16)
    model.logit_scale.data = scale


def convert_matrices(tower: Any) -> None:
    """Converts what a tower multiplies by, in place."""
    for module in tower.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
            module.to(torch.bfloat16)
    for matrix in (getattr(tower, "proj", None), getattr(tower, "text_projection", None)):
        if isinstance(matrix, nn.Parameter):
            matrix.data = matrix.data.to(torch.bfloat16)


def is_plain(tower: Any) -> bool:
    """Whether a tower is a transformer of open_clip's own, as OpenAI's CLIP has them."""
    blocks = getattr(tower, "transformer", None)
    if not isinstance(blocks, Transformer) or getattr(tower, "attn_pool", None) is not None:
        return False
    return {type(block) for block in blocks.resblocks} == {ResidualAttentionBlock}


def keep_sums_exact(tower: Any) -> None:
    """Makes what the blocks of a plain tower add up float32, and what they multiply bfloat16, in place.

    The wider type of two that are added wins, so all sums are float32 once the first of them is.
    """
    for parent in (tower, *tower.transformer.resblocks):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.LayerNorm):
                setattr(parent, name, ExactNorm(norm, torch.float32 if name == "ln_pre" else torch.bfloat16))
    tower.transformer.get_cast_dtype = lambda: torch.float32  # of the embeddings of tokens, which sums begin with


def fold_batch_norms(model: nn.Module) -> None:
    """Makes each batch norm of a ResNet part of the convolution before it, in place."""
    for parent in list(model.modules()):
        for (before, conv), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(conv, norm))
                setattr(parent, name, nn.Identity())


class ExactNorm(nn.Module):
    """A layer norm that computes in float32, whatever comes.

    Args:
        norm: The layer norm.
        dtype: Of the result.
    """

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(self.dtype)


class PackedLinear(nn.Module):
    """A linear layer without gradient whose matrix lies as oneDNN multiplies it, which else sorts it at every call.

    Args:
        weight, bias: In bfloat16, shapes `[out, in]` and `[out]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.packed, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias

    @classmethod
    def of(cls, layer: nn.Linear) -> PackedLinear:
        """The same layer, packed."""
        return cls(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PackedAttention(nn.Module):
    """Self-attention of images, with packed matrices: called as `nn.MultiheadAttention` is, with `[B, T, D]`."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.into = PackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = PackedLinear.of(attention.out_proj)

    def forward(self, x: Tensor, *_: Tensor, **__: Any) -> tuple[Tensor]:
        query, key, value = self.into(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)),)
