"""HeGraphAdapter: adapts a frozen CLIP from a few labelled images by message passing on a heterogeneous graph.

In a checkout the package is `trainers.hegraph`; installed by pip it is `hegraph`. Its public names, each imported when
it is first used, so that importing the package itself imports no torch:

Configuration and errors
    load_cfg         layers defaults, YAML files and options into one checked configuration
    UserError        what is raised where the input is wrong; its message says how to mend it

Data sets
    load_dataset     the full splits of a data set, by name
    load_few_shot    the few-shot task that CoOp's protocol draws from a data set for a seed

Features
    load_backbone    a frozen CLIP model, by the name open_clip gives it
    Backbone         that model: encodes images and sentences into unit features
    FeatureBank      all features, labels and class names of one task
    load_bank        reads a feature bank from its file

The method
    build_graph      the heterogeneous graph of positive text, negative text and visual nodes
    HeteroGraph      that graph: its nodes and six relations
    HeGraphModel     the model: message passing, text classifier, cache classifier
    ModelOptions     the options of the model, each with its symbol in the paper

Python
    HeGraphClassifier  the method as a scikit-learn classifier: fit, predict, save, load, push to the Hub
    LabelIssue         what a model that has not seen an image says of its label

Experiments
    run              one experiment: trains and tests one seed, and writes its record

`__version__` is the version of the package.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# A command line begins: `python -m`, or the installed program. While it imports, Ctrl-C ends it without a traceback
if os.path.basename(sys.argv[0]) in ("-m", "hegraph") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if TYPE_CHECKING:
    from .backbones.clip import Backbone as Backbone
    from .backbones.loading import load_backbone as load_backbone
    from .config_files import load_cfg as load_cfg
    from .datasets import load_dataset as load_dataset
    from .datasets import load_few_shot as load_few_shot
    from .estimator.classifier import HeGraphClassifier as HeGraphClassifier
    from .experiments.run import run as run
    from .features.bank import FeatureBank as FeatureBank
    from .features.bank import load_bank as load_bank
    from .labels.issues import LabelIssue as LabelIssue
    from .method.graph import HeteroGraph as HeteroGraph
    from .method.graph import build_graph as build_graph
    from .method.model import HeGraphModel as HeGraphModel
    from .method.options import ModelOptions as ModelOptions
    from .utils.errors import UserError as UserError

__version__ = "0.1.0"

# public name -> the module that defines it
_HOMES = {
    "Backbone": ".backbones.clip",
    "FeatureBank": ".features.bank",
    "HeGraphClassifier": ".estimator.classifier",
    "HeGraphModel": ".method.model",
    "HeteroGraph": ".method.graph",
    "LabelIssue": ".labels.issues",
    "ModelOptions": ".method.options",
    "UserError": ".utils.errors",
    "build_graph": ".method.graph",
    "load_backbone": ".backbones.loading",
    "load_bank": ".features.bank",
    "load_cfg": ".config_files",
    "load_dataset": ".datasets",
    "load_few_shot": ".datasets",
    "run": ".experiments.run",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
