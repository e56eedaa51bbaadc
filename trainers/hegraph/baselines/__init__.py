"""Registry of HeGraphAdapter and the methods that it is compared with, each a subclass of `base.Method`.

Methods are imported on demand, so that shell scripts list the names without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ..utils.option import OUR_METHOD, OptionGroup

if TYPE_CHECKING:
    from .base import Method

# Class name, the value of `--trainer` -> module. Tables list the methods in this order.
METHODS: dict[str, str] = {
    "ZeroShot": "class_features", "LinearProbe": "linear_probes", "CoOp": "class_features",
    "CLIPAdapter": "class_features", "TaskRes": "class_features", "TipAdapter": "caches", "TipAdapterF": "caches",
    "TipAdapterFHOSO": "caches", "GraphAdapter": "class_features", "ProtoCLIP": "proto_clip",
    "LPPlusPlus": "linear_probes", "CLAP": "class_features", "GDA": "closed_form", "TIMO": "closed_form",
    "TIMOS": "closed_form", "ProKeR": "closed_form", "ReHARK": "closed_form", "APE": "ape", "APET": "ape",
    "SimNL": "simnl",
}  # fmt: skip
# Transductive methods. They need `--unlabelled test`, and "all" does not include them
TRANSDUCTIVE_METHODS: dict[str, str] = dict.fromkeys(("TransCLIP", "ZLaP", "StatA", "ECALP", "ADAPT"), "transductive")
# Methods for several labels per image; "all" does not include them
MULTILABEL_METHODS: dict[str, str] = dict.fromkeys(("ZeroShotStandardised", "OneVsRest", "Ridge"), "multilabel")
SEVERAL_LABELS = (OUR_METHOD, "ZeroShot", *MULTILABEL_METHODS)  # methods that support several labels per image
ALL_BASELINES = METHODS | TRANSDUCTIVE_METHODS | MULTILABEL_METHODS
MODULES = {OUR_METHOD: "hegraph"} | ALL_BASELINES  # of every value of `--trainer`


def load_method(name: str) -> "Method[Any]":
    """Import and create a method by its name, a key of `MODULES`."""
    return getattr(importlib.import_module(f".{MODULES[name]}", __package__), name)()


def method_options(name: str) -> OptionGroup | None:
    """Return the options of a method for `load_cfg`; None for HeGraphAdapter."""
    return OptionGroup(name, load_method(name).options) if name in ALL_BASELINES else None


def needs_backbone(name: str) -> bool:
    """Whether a method needs the CLIP backbone, so that it runs on images but not on a feature bank."""
    return name in ALL_BASELINES and load_method(name).needs_backbone
