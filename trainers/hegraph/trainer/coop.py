"""Run a configuration in a CoOp checkout by `python -m trainers.hegraph`, as CoOp's `train.py` does.

No function of CoOp or Dassl is replaced: the steps of `train.py` follow each other here, with a configuration that this
package has checked.
"""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from .. import config, config_files
from ..baselines import ALL_BASELINES
from ..config import Config
from ..results.records import read_record
from ..utils.errors import UserError, first_line
from ..utils.threads import cores
from .adapter import HeGraphAdapter
from .base import FeatureTrainer
from .configuration import WORKERS, from_dassl, obstacles_in
from .fitted import baseline_trainer
from .host import collect_env_info, set_random_seed, setup_logger

LOG = "log.txt"  # name of Dassl's log, which CoOp's parse_test_res.py reads


def configure_coop(root: Path, *layers: Any) -> tuple[Config, CfgNode]:
    """Make a CoOp checkout importable; return the configuration of this package and the frozen one of Dassl.

    Args:
        root: Folder of the checkout.
        layers: Arguments of `load_cfg`; they may set keys of Dassl and CoOp as well.

    Raises:
        UserError: As in `load_cfg`, or if Dassl cannot run the configuration, with the code "dassl".
    """
    sys.path.insert(0, str(root))
    coop = importlib.import_module("train")
    tree = coop.get_cfg_default()
    try:
        coop.extend_cfg(tree)
    except NameError as error:  # a fork whose keys depend on the arguments of its own command line
        reason = f"extend_cfg of {root / 'train.py'} fails outside train.py ({first_line(error)})"
        raise UserError(f"{reason}; python train.py --trainer HeGraphAdapter runs it", "dassl") from error
    config.extend_cfg(tree)
    ours = {key: value for key, value in config.default_values().items() if key not in config.BACKBONE_KEYS}
    cfg = config_files.load_cfg(*layers, known=config_files.flatten(tree) | ours)
    if obstacles := obstacles_in(cfg):
        raise UserError("; ".join(obstacles), "dassl")
    for key, value in cfg.values.items():
        if value or key not in config.BACKBONE_KEYS:  # empty: those of a backbone that no file describes
            config.set_key(tree, config.WEIGHTS_IN_DASSL if key == config.WEIGHTS else key, value)
    if cfg.values[WORKERS] == 0:
        config.set_key(tree, WORKERS, cores())
    tree.freeze()
    return from_dassl(tree, cfg.run.trainer), tree


def run_in_coop(args: argparse.Namespace, cfg: CfgNode) -> dict:
    """Train or test as CoOp's `train.py`, with the configuration of `configure_coop`.

    Args:
        args: Arguments of the command line.
        cfg: Configuration of Dassl.

    Returns:
        The record; {} with --no-train, or if a test has no record of its own.
    """
    coop = importlib.import_module("train")
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    set_aside_log(Path(cfg.OUTPUT_DIR))
    setup_logger(cfg.OUTPUT_DIR)
    coop.print_args(args, cfg)
    sys.stdout.write(f"Collecting env info ...\n** System info **\n{collect_env_info()}\n\n")
    trainer = trainer_class(cfg.TRAINER.NAME)(cfg, only_test=args.eval_only)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif args.no_train:
        trainer.task.bank()
    else:
        trainer.train()
    return trainer.record


def trainer_class(name: str) -> type[FeatureTrainer]:
    """Return the trainer of a method of this package, whether or not Dassl has one of the same name."""
    return baseline_trainer(name) if name in ALL_BASELINES else HeGraphAdapter


def set_aside_log(folder: Path) -> None:
    """Rename the log of an interrupted run, so that Dassl's next log has the name that `parse_test_res.py` reads."""
    log = folder / LOG
    if log.is_file() and read_record(folder) is None:
        written = time.strftime("%Y-%m-%d-%H-%M-%S", time.localtime(log.stat().st_mtime))
        os.replace(log, folder / f"{LOG}-{written}")
