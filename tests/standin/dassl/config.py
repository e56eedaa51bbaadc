"""Dassl's keys and defaults, as far as anything here reads them."""

from __future__ import annotations

import yaml
from yacs.config import CfgNode

DEFAULTS = """
VERSION: 1
OUTPUT_DIR: "./output"
RESUME: ""
SEED: -1
USE_CUDA: true
VERBOSE: true
INPUT: {INTERPOLATION: bilinear, RRCROP_SCALE: !!python/tuple [0.08, 1.0], SIZE: !!python/tuple [224, 224],
        TRANSFORMS: !!python/tuple [], PIXEL_MEAN: [0.485, 0.456, 0.406], PIXEL_STD: [0.229, 0.224, 0.225]}
DATASET: {ROOT: "", NAME: "", NUM_SHOTS: -1, TARGET_DOMAINS: !!python/tuple []}
DATALOADER: {NUM_WORKERS: 4, K_TRANSFORMS: 1, TRAIN_X: {BATCH_SIZE: 32}, TEST: {BATCH_SIZE: 32}}
MODEL: {BACKBONE: {NAME: "", PRETRAINED: true}}
OPTIM: {NAME: adam, LR: 0.0003, WEIGHT_DECAY: 0.0005, LR_SCHEDULER: single_step, MAX_EPOCH: 10, WARMUP_EPOCH: -1,
        WARMUP_TYPE: linear, WARMUP_CONS_LR: 0.00001}
TRAIN: {CHECKPOINT_FREQ: 0, PRINT_FREQ: 10}
TEST: {NO_TEST: false, SPLIT: test, FINAL_MODEL: last_step, PER_CLASS_RESULT: false, COMPUTE_CMAT: false}
TRAINER: {NAME: ""}
"""


def get_cfg_default() -> CfgNode:
    return CfgNode(yaml.unsafe_load(DEFAULTS))
