"""The methods that HeGraphAdapter is compared with: one file each, one signature (`base.py`), the same features."""

from __future__ import annotations

import importlib
from types import ModuleType

# `--trainer` -> the file beside this one
METHODS = {
    "ZeroShot": "zero_shot",
    "LinearProbe": "linear_probe",
    "CoOp": "coop",
    "CLIPAdapter": "clip_adapter",
    "TaskRes": "taskres",
    "TipAdapter": "tip_adapter",
    "TipAdapterF": "tip_adapter_f",
    "GraphAdapter": "graph_adapter",
    "ProtoCLIP": "proto_clip",
    "LPPlusPlus": "lp_plus_plus",
    "APE": "ape",
    "APET": "ape_t",
}


def load_method(name: str) -> ModuleType:
    """The module of a method, with `DEFAULTS` and `fit`."""
    return importlib.import_module(f".{METHODS[name]}", __package__)
