"""A stand-in of CoOp's train.py: the same flags, functions and order of configuration."""

import argparse
import functools
import sys

import datasets.caltech101
import datasets.imagenet
import datasets.oxford_pets  # noqa: F401 (they register)
import trainers.noise  # noqa: F401
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger

KEYS = {
    "root": "DATASET.ROOT", "output_dir": "OUTPUT_DIR", "resume": "RESUME", "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS", "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS", "trainer": "TRAINER.NAME", "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
}  # fmt: skip


def reset_cfg(cfg, args):
    for flag, key in KEYS.items():
        if getattr(args, flag):
            *groups, name = key.split(".")
            functools.reduce(getattr, groups, cfg)[name] = getattr(args, flag)


def extend_cfg(cfg):
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if args.dataset_config_file:
        cfg.merge_from_file(args.dataset_config_file)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    reset_cfg(cfg, args)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def main(args):
    cfg = setup_cfg(args)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    sys.stdout.write(f"{vars(args)}\n{cfg}\n{collect_env_info()}\n")
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("root", "output-dir", "resume", "config-file", "dataset-config-file", "trainer", "backbone", "head"):
        parser.add_argument(f"--{name}", default="")
    for name in ("source-domains", "target-domains", "transforms"):
        parser.add_argument(f"--{name}", nargs="+")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--model-dir", default="")
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    main(parser.parse_args())
