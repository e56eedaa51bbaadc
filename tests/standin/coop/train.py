"""Substitute of CoOp's train.py, with the flags that tests use, its functions and its order of configuration."""

import argparse
import sys

import datasets.caltech101
import datasets.imagenet  # noqa: F401 (they register)
import trainers.noise  # noqa: F401
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger


def extend_cfg(cfg):
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for file in (args.dataset_config_file, args.config_file):
        if file:
            cfg.merge_from_file(file)
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.SEED, cfg.TRAINER.NAME = args.root, args.output_dir, args.seed, args.trainer
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def print_args(args, cfg):
    sys.stdout.write(f"{vars(args)}\n{cfg}\n")


def main(args):
    cfg = setup_cfg(args)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    print_args(args, cfg)
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("root", "output-dir", "config-file", "dataset-config-file", "trainer", "model-dir"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    main(parser.parse_args())
