"""The methods that HeGraphAdapter is compared with: one class each, all with the contract of `base.py`.

This file is their registry. It imports no method, so that the shell scripts get the names at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Method

# Name of the class, which is what `--trainer` says -> its file. Tables list them in this order.
METHODS: dict[str, str] = {
    "ZeroShot": "class_features",
    "LinearProbe": "linear_probes",
    "CoOp": "class_features",
    "CLIPAdapter": "class_features",
    "TaskRes": "class_features",
    "TipAdapter": "caches",
    "TipAdapterF": "caches",
    "GraphAdapter": "class_features",
    "ProtoCLIP": "proto_clip",
    "LPPlusPlus": "linear_probes",
    "CLAP": "class_features",
    "GDA": "closed_form",
    "TIMO": "closed_form",
    "TIMOS": "closed_form",
    "ProKeR": "closed_form",
    "APE": "caches",
    "APET": "caches",
}
# Methods that predict all test images together. They run with `--unlabelled test` alone, and "all" does not name them
TRANSDUCTIVE_METHODS: dict[str, str] = {"TransCLIP": "transductive", "ZLaP": "transductive", "StatA": "transductive"}
OTHERS = METHODS | TRANSDUCTIVE_METHODS


def load_method(name: str) -> Method:
    """Imports a method by its name, a key of `OTHERS`."""
    return getattr(importlib.import_module(f".{OTHERS[name]}", __package__), name)()


def method_options(name: str) -> tuple[str, dict[str, Any]] | None:
    """Name and default options of a method, as `load_cfg` takes them; None for HeGraphAdapter, which has its own."""
    return (name, dict(load_method(name).defaults)) if name in OTHERS else None


def needs_backbone(name: str) -> bool:
    """Whether a method needs the backbone itself, and so runs on images only."""
    return name in OTHERS and load_method(name).needs_backbone
