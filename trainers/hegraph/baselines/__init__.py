"""The methods that HeGraphAdapter is compared with: one file each, all with the contract of `base.py`.

This file is their registry. It imports neither torch nor any method, so that the shell scripts can ask for the names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .declared import read_declared

if TYPE_CHECKING:
    from .base import Method

# Name of the class, which is what `--trainer` says -> the file beside this one. Tables list them in this order.
METHODS: dict[str, str] = {
    "ZeroShot": "zero_shot",
    "LinearProbe": "linear_probe",
    "CoOp": "coop",
    "CLIPAdapter": "clip_adapter",
    "TaskRes": "task_res",
    "TipAdapter": "tip_adapter",
    "TipAdapterF": "tip_adapter_f",
    "GraphAdapter": "graph_adapter",
    "ProtoCLIP": "proto_clip",
    "LPPlusPlus": "lp_plus_plus",
    "CLAP": "clap",
    "GDA": "gda",
    "TIMO": "timo",
    "TIMOS": "timo_s",
    "ProKeR": "proker",
    "APE": "ape",
    "APET": "ape_t",
}


def load_method(name: str) -> Method:
    """Imports a method by its name, a key of `METHODS`."""
    return getattr(importlib.import_module(f".{METHODS[name]}", __package__), name)()


def method_options(name: str) -> tuple[str, dict[str, Any]] | None:
    """Name and default options of a method, as `load_cfg` takes them; None for HeGraphAdapter, which has its own."""
    if name not in METHODS:
        return None
    found = read_declared(METHODS[name], name) or load_method(name)
    return name, dict(found.defaults)


def needs_backbone(name: str) -> bool:
    """Whether a method needs the backbone itself, and so runs on images only."""
    if name not in METHODS:
        return False
    found = read_declared(METHODS[name], name) or load_method(name)
    return getattr(found, "needs_backbone", False)
