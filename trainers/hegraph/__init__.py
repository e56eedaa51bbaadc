"""HeGraphAdapter: few-shot adaptation of a frozen CLIP model by message passing on a heterogeneous graph.

The package is `trainers.hegraph` in a checkout, and `hegraph` once installed. Its public names are imported on first
use, so that importing the package does not import torch:

Configuration and errors
    load_cfg         load a configuration from defaults, YAML files and options
    UserError        error for invalid input, whose message contains a remedy

Data sets
    load_dataset     load the full splits of a data set by name
    load_few_shot    load the few-shot task that CoOp's protocol samples from a data set for a seed

Features
    load_backbone    load a frozen image encoder of open_clip, transformers or timm by its name
    Backbone         frozen encoder of images, and mostly of sentences, as unit features
    FeatureBank      features, labels and class names of one task
    load_bank        read a feature bank from a file

The method
    build_graph      build the graph of positive text, negative text and visual nodes
    HeteroGraph      heterogeneous graph with its nodes and six relations
    HeGraphModel     model with message passing, text classifier and cache classifier
    ModelOptions     options of the model, with their symbols in the paper

Python
    HeGraphClassifier  scikit-learn classifier: fit, predict, save, load, push to the Hub
    compare_backbones  compare backbones on held-out labelled images
    LabelIssue         suspicious label of an image, by a model trained without the image

Experiments
    run              train and test one seed, and write its record

`__version__` is the version of the package.
"""

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# In a command line (`python -m` with this package, or the installed program), Ctrl-C during imports ends without a
# traceback. Other programs keep their handler, also if `python -m` imports them first.
_is_command = os.path.basename(sys.argv[0]) == "hegraph" or (
    sys.argv[0] == "-m" and any(f"{word}.".startswith(f"{__name__}.") for word in sys.orig_argv)
)
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if TYPE_CHECKING:
    from .config_files import load_cfg as load_cfg
    from .datasets.loading import load_dataset as load_dataset, load_few_shot as load_few_shot
    from .estimator.classifier import HeGraphClassifier as HeGraphClassifier
    from .estimator.labels.issues import LabelIssue as LabelIssue
    from .estimator.model_selection.backbones import compare_backbones as compare_backbones
    from .experiments.run import run as run
    from .features.backbones.base import Backbone as Backbone
    from .features.backbones.loading import load_backbone as load_backbone
    from .features.bank import FeatureBank as FeatureBank, load_bank as load_bank
    from .method.graph import HeteroGraph as HeteroGraph, build_graph as build_graph
    from .method.model import HeGraphModel as HeGraphModel
    from .method.options import ModelOptions as ModelOptions
    from .utils.errors import UserError as UserError

__version__ = "0.2.0"

# public name -> module that defines it
_HOMES = {
    "Backbone": ".features.backbones.base",
    "FeatureBank": ".features.bank",
    "HeGraphClassifier": ".estimator.classifier",
    "HeGraphModel": ".method.model",
    "HeteroGraph": ".method.graph",
    "LabelIssue": ".estimator.labels.issues",
    "ModelOptions": ".method.options",
    "UserError": ".utils.errors",
    "build_graph": ".method.graph",
    "compare_backbones": ".estimator.model_selection.backbones",
    "load_backbone": ".features.backbones.loading",
    "load_bank": ".features.bank",
    "load_cfg": ".config_files",
    "load_dataset": ".datasets.loading",
    "load_few_shot": ".datasets.loading",
    "run": ".experiments.run",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
