"""Import of Dassl.

Dassl imports `wilds` for data sets that this package never loads, and mutes the logging of the whole process. Both are
undone: a missing `wilds` is empty during the import only.
"""

import importlib.util
import logging
import sys
import types

_level = logging.root.manager.disable
_lacks_wilds = "wilds" not in sys.modules and importlib.util.find_spec("wilds") is None
if _lacks_wilds:
    sys.modules["wilds"] = types.ModuleType("wilds")
    sys.modules["wilds"].__dict__["get_dataset"] = None
try:
    from dassl.data import DataManager
    from dassl.data.datasets import DATASET_REGISTRY, Datum
    from dassl.engine import TRAINER_REGISTRY, TrainerX
    from dassl.metrics import compute_accuracy
    from dassl.utils import collect_env_info, set_random_seed, setup_logger
finally:
    logging.disable(_level)
    if _lacks_wilds:
        del sys.modules["wilds"]

__all__ = [
    "DATASET_REGISTRY",
    "TRAINER_REGISTRY",
    "DataManager",
    "Datum",
    "TrainerX",
    "collect_env_info",
    "compute_accuracy",
    "set_random_seed",
    "setup_logger",
]
