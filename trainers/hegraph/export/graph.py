"""From a torch module to an ONNX graph.

The graph is traced by torch's TorchScript exporter (`dynamo=False`), because it is the one that gives all our models in
every torch from 2.4 to 2.13. In torch 2.4 the newer exporter ignores names, opset and dynamic axes; in later ones it
takes longer, and it always needs the package onnxscript.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import UserError, first_line
from .modules import Full, Head

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17
LARGEST_FILE = 2**31  # bytes: protobuf's limit
LOGITS, PROBABILITIES = "logits", "probabilities"


def trace(module: Head | Full, inputs: Tensor, name: str) -> ModelProto:
    """The ONNX graph of a module, whose batch is of any size.

    Args:
        module: The module.
        inputs: An input of it, of two rows or more.
        name: Name of the input in the graph.

    Raises:
        UserError: If an operation of the module has no form in ONNX, or its weights are too large for a file.
    """
    import onnx

    hint = "; --part head exports the classifier without it" if isinstance(module, Full) else ""
    if isinstance(module, Full) and (size := module.encoder.num_bytes()) >= LARGEST_FILE:
        raise UserError(f"the image tower has {size / 1e9:.1f} GB, but an ONNX file can have 2 GB at most{hint}")
    file, batch = io.BytesIO(), {0: "batch"}
    try:
        with _tracing():
            torch.onnx.export(
                module.eval(),
                (inputs,),
                file,  # type: ignore[arg-type]  # the TorchScript exporter takes a file as well as a path
                dynamo=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=[LOGITS, PROBABILITIES],
                dynamic_axes={name: batch, LOGITS: batch, PROBABILITIES: batch},
            )
    except (RuntimeError, TypeError, ValueError) as error:  # the exporter's own errors are RuntimeErrors
        raise UserError(f"the model has no form in ONNX: {first_line(error)}{hint}") from error
    return onnx.load_model_from_string(file.getvalue())


@contextmanager
def _tracing() -> Iterator[None]:
    """Without torch's fused attention, which ONNX does not have, and without warnings, which are for torch's developers
    and those of open_clip.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def halve(graph: ModelProto) -> ModelProto:
    """The graph with its weights stored as float16, each behind a cast to float32, in which the graph still computes.

    It does not compute in float16: what onnxruntime's own converter makes of a ViT in that way crashes the optimiser of
    onnxruntime 1.32 on a CPU, and logits reach 100, where neighbours in float16 are 0.06 apart.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            name, stored = weight.name, f"{weight.name}.float16"
            with np.errstate(over="ignore"):  # what becomes infinite is found when the file is compared with torch
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), stored))
            casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph
