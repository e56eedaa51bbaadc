"""Dassl trainers: HeGraphAdapter as a trainer that Dassl's users recognise. No other package imports dassl.

`adapter.py` has the class, in the methods of CoOp's own trainer. Importing this package registers `HeGraphAdapter` in
Dassl and nothing else; importing `trainer.baselines` registers the other methods. docs/guides/coop.md has a script, a
subclass and the two lines for CoOp's `train.py`.
"""

from .adapter import HeGraphAdapter
from .base import FeatureTrainer
from .coop import configure_coop, run_in_coop
from .keys import extend_cfg

__all__ = ["FeatureTrainer", "HeGraphAdapter", "configure_coop", "extend_cfg", "run_in_coop"]
