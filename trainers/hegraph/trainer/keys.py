"""Keys of this package in Dassl's configuration."""

import argparse

from yacs.config import CfgNode

from .. import config, config_files
from ..baselines import ALL_BASELINES, method_options
from .base import FeatureTrainer
from .host import TRAINER_REGISTRY


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys of HeGraphAdapter to a configuration of Dassl, unless the command line names a foreign `--trainer`.

    So the configurations and logs of other trainers stay as they are.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--trainer", default="")
    name = parser.parse_known_args()[0].trainer
    if not name or is_ours(name):
        config.extend_cfg(cfg)
        for method in ALL_BASELINES:
            if is_ours(method):
                add_method_keys(cfg, method)


def is_ours(name: str) -> bool:
    """Whether Dassl has a trainer of this name that is from this package, or derived from one."""
    if name not in TRAINER_REGISTRY.registered_names():
        return False
    return issubclass(TRAINER_REGISTRY.get(name), FeatureTrainer)


def add_method_keys(cfg: CfgNode, method: str) -> None:
    """Add the keys of a method of `baselines/`, unless CoOp or Dassl has such a group of keys."""
    known = config_files.flatten(cfg)
    for key, value in config_files.method_values(method_options(method), known).items():
        config.set_key(cfg, key, value)
