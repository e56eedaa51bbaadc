"""Register the methods of `baselines/` as trainers of Dassl, by importing this module:

    import trainers.hegraph.trainer.baselines    # as the last of the imports in CoOp's train.py

Names that are registered already, such as a fork's own TaskRes, are left alone.
"""

from ..baselines import METHODS
from .configuration import is_coops_own
from .fitted import baseline_trainer
from .host import TRAINER_REGISTRY

for _name in METHODS:
    if not is_coops_own(_name) and _name not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register()(baseline_trainer(_name))
