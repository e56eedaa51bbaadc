"""Building of models without random weights, for models whose weights are all loaded from a file afterwards."""

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Functions that fill a new weight. Those of `nn.init`, and timm's, call methods of the tensor outside the mode below
RANDOM_WEIGHTS = (
    nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_, Tensor.erfinv_,
)  # fmt: skip


class WithoutRandomWeights(TorchFunctionMode):
    """Context that leaves new weights as they are in memory; random ones take a second for a ViT-B/32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function in RANDOM_WEIGHTS:
            return args[0] if args else named["tensor"]
        return function(*args, **named)
