"""Every configuration key: default, meaning, allowed values. `config_files.py` reads and checks configurations.

The keys outside `TRAINER.HEGRAPHADAPTER` are a subset of Dassl's and CoOp's with the same names and types, so one YAML
file loads in both hosts. Only `MODEL.BACKBONE.PRETRAINED` differs: it names weights here and is a yes or no there. The
defaults are the recipe of `configs/trainers/HeGraphAdapter/*.yaml`; how they were chosen is in `docs/results.md`.
"""

from __future__ import annotations

import math

from yacs.config import CfgNode as CN

from .features.options import EncodingOptions
from .method.options import SHUFFLES, VARIANTS, ClosedFormOptions, ModelOptions
from .method.relations import metapath_defaults
from .training.options import TrainingOptions
from .utils.rows import values_up_to

CHOICES = {
    "TRAINER.HEGRAPHADAPTER.VARIANT": VARIANTS,
    "TRAINER.HEGRAPHADAPTER.WEIGHT_INIT": ("identity", "xavier", "zero"),
    "TRAINER.HEGRAPHADAPTER.SHUFFLE": SHUFFLES,
    "TRAINER.HEGRAPHADAPTER.FEATURES.MODE": ("bank", "online"),
    "TRAINER.HEGRAPHADAPTER.PROMPTS.SOURCE": ("auto", "templates", "descriptions", "both"),
    "TRAINER.HEGRAPHADAPTER.CALIBRATE": ("auto", "off"),
    "TRAINER.HEGRAPHADAPTER.PREC": ("fp32", "fp16", "amp"),
    "DATASET.SUBSAMPLE_CLASSES": ("all", "base", "new"),
    "TRAINER.HEGRAPHADAPTER.SELECT_ON": ("last_step", "val"),
    "OPTIM.NAME": ("adamw",),
    "OPTIM.LR_SCHEDULER": ("cosine",),
    "OPTIM.WARMUP_TYPE": ("constant",),
    "INPUT.INTERPOLATION": ("bicubic", "bilinear"),
    # Dassl's other values would select on test: where there is no val split, it scores test in its place
    "TEST.FINAL_MODEL": ("last_step",),
    "TEST.SPLIT": ("test",),
}
# The backbone decides these; Dassl's defaults for them belong to another network.
OF_THE_BACKBONE = ("INPUT.SIZE", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
# Keys that may be left open, and are then filled from BY_DATASET and BY_SHOTS. "Open" is a value, so that it also works
# for a configuration that Dassl has merged and frozen: what anybody set, in a file or on the command line, stays.
OPEN = -1
NODE = "TRAINER.HEGRAPHADAPTER"
FILLED_BY_SHOTS = (
    "OPTIM.LR",
    f"{NODE}.MIN_STEPS",
    f"{NODE}.VISUAL_LR",
    f"{NODE}.ALPHA_C",
    f"{NODE}.CLOSED_FORM.KAPPA",
    f"{NODE}.CLOSED_FORM.OMEGA",
)
FILLABLE = (*FILLED_BY_SHOTS, "OPTIM.MAX_EPOCH")
# Few shots overfit at large rates. At one shot, leaving out an image's own key leaves its class without any, so that
# the visual loss can teach little. Chosen on validation data; docs/trials.md says how.
BY_SHOTS = tuple(
    (shots, [entry for pair in zip(FILLED_BY_SHOTS, values) for entry in pair])
    for shots, *values in (
        (1, 0.0001, 100, 0.0006, 8.0, 4.0, 0.1),
        (2, 0.0001, 240, 0.01, 2.0, 4.0, 0.1),
        (4, 0.00015, 320, 0.01, 1.0, 4.0, 0.1),
        (8, 0.0004, 280, 0.01, 1.0, 2.0, 0.15),
        (16, 0.0012, 200, 0.01, 1.0, 2.0, 0.15),
    )
)
# Keys of earlier versions, each with the only value that it may still be set to: what the code does now
REMOVED = {
    f"{NODE}.ACTIVATION": "tanh",
    f"{NODE}.WEIGHT_PER": "target",
    f"{NODE}.GAMMA": 1.0,
    f"{NODE}.CLOSED_FORM.OMEGA_NEW": 0.05,
    f"{NODE}.FREE.PRIOR": 4.0,
}
TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")


def get_cfg_default() -> CN:
    """The keys we share with Dassl (same names and types) and ours."""
    cfg = CN()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = 1  # 0 is a seed; below 0 a seed is drawn and recorded
    cfg.USE_CUDA = True
    cfg.RESUME = ""  # folder of an interrupted run to go on from; OUTPUT_DIR is looked at anyway

    cfg.INPUT = CN()
    cfg.INPUT.INTERPOLATION = "bicubic"  # how a random resized crop is resized: bicubic, bilinear
    # The backbone's own resolution and normalisation are used; these keys may only repeat them.
    cfg.INPUT.SIZE = ()
    cfg.INPUT.PIXEL_MEAN = []
    cfg.INPUT.PIXEL_STD = []
    cfg.INPUT.TRANSFORMS = TRANSFORMS  # augmentation of training images
    cfg.INPUT.RRCROP_SCALE = (0.08, 1.0)  # least and most area that a random resized crop keeps

    cfg.DATASET = CN()
    cfg.DATASET.ROOT = ""
    cfg.DATASET.NAME = ""
    cfg.DATASET.NUM_SHOTS = 16  # training images per class; -1: all
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all; base: the first half of the classes; new: the rest
    # Further data sets that a trained method is tested on
    cfg.DATASET.TARGET_DOMAINS = ()  # data sets with the same classes or some of them
    cfg.DATASET.TARGET_DATASETS = ()  # data sets with other classes: NAME, NAME:base or NAME:new

    cfg.DATALOADER = CN()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X = CN()
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 256
    cfg.DATALOADER.TEST = CN()
    cfg.DATALOADER.TEST.BATCH_SIZE = 256

    cfg.MODEL = CN()
    cfg.MODEL.BACKBONE = CN()
    cfg.MODEL.BACKBONE.NAME = ""  # an open_clip model name
    cfg.MODEL.BACKBONE.PRETRAINED = "auto"  # an open_clip tag or a weights file; auto: the model's own, else OpenAI's

    cfg.OPTIM = CN()
    cfg.OPTIM.NAME = "adamw"
    cfg.OPTIM.LR = float(OPEN)  # filled by shots; scaled at another feature width than LR_WIDTH
    cfg.OPTIM.WEIGHT_DECAY = 0.01
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.MAX_EPOCH = 15
    cfg.OPTIM.WARMUP_EPOCH = 1  # epochs at WARMUP_CONS_LR; 0 or below: none
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.OPTIM.WARMUP_CONS_LR = 1e-5

    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # epochs between checkpoints; 0: whenever 10 s have passed
    cfg.TRAIN.PRINT_FREQ = 5

    cfg.TEST = CN()
    cfg.TEST.FINAL_MODEL = "last_step"
    cfg.TEST.SPLIT = "test"

    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = "HeGraphAdapter"
    extend_cfg(cfg)
    return cfg


def extend_cfg(cfg: CN) -> None:
    """Adds `cfg.TRAINER.HEGRAPHADAPTER` and the other keys that Dassl lacks. Dassl's and CoOp's trainers are
    unaffected.
    """
    cfg.MODEL.BACKBONE.PRETRAINED = "auto"  # Dassl has True here, and only asks whether the value is true
    if "SUBSAMPLE_CLASSES" not in cfg.DATASET:
        cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    if "TARGET_DATASETS" not in cfg.DATASET:
        cfg.DATASET.TARGET_DATASETS = ()

    node = cfg.TRAINER.HEGRAPHADAPTER = CN()
    node.VARIANT = "full"  # base, T-N, T-P, T, full: the rows of the paper's Table 2; free: no training

    # Meta-path weights (Eq. 2 and 4): the keys and defaults are those of the table in method/relations.py. ALPHA_PP,
    # ALPHA_VP and ALPHA_NP weigh the messages to positive text nodes from positive, visual and negative ones, BETA_PN
    # and BETA_VN those to negative nodes. ALPHA_NP_TEST takes the place of ALPHA_NP at test time.
    for key, weight in metapath_defaults().items():
        node[key] = weight
    # A relation of weight 0 is left out, whatever ALPHA_NP_TEST or LEARN_METAPATH say
    node.LEARN_METAPATH = False  # train these weights (Table 3, last column); ALPHA_NP_TEST is then unused

    # The layer
    # Whether messages to text nodes have a W. Without one, a message is the bias of its class and relation, and what
    # other classes say arrives in closed form alone. True is the paper's layer
    node.TEXT_W = False
    node.BIAS = True  # a trainable bias per class and relation
    node.WEIGHT_INIT = "identity"  # identity, xavier, zero
    # The feature width that OPTIM.LR is meant for. At width d the rate is OPTIM.LR * sqrt(LR_WIDTH / d), since AdamW
    # moves each entry of a feature by about the rate, which turns a unit vector by sqrt(d) times as much. 0: the same
    # at any width
    node.LR_WIDTH = 512
    # The logit scale that OPTIM.LR is meant for. At scale tau the rate is OPTIM.LR * LR_TAU / tau, which moves the
    # logits alike. 0: the same at any scale
    node.LR_TAU = 100.0
    # Factor on OPTIM.LR where text is weak: where zero-shot CLIP knows little of the training images, see
    # training/weak_text.py; rows [from this many shots, value]
    node.WEAK_TEXT_LR_MULT = [[1, 3.0], [2, 1.0]]
    node.WEIGHT_LR_MULT = 0.1  # learning rate of W as a multiple of OPTIM.LR, which is that of the biases
    node.VISUAL_LR = float(OPEN)  # learning rate of the visual relation; filled by shots

    # Within-class noise of training: a query is moved by another image's deviation from its class node, times NOISE.
    # 0: none
    node.NOISE = 1.0

    # Messages in closed form from visual to text nodes (method/closed_form.py), added to the trained text classifier
    node.CLOSED_FORM = CN()
    # Weight of the messages in the logits; 0: none, as in the paper; filled by shots
    node.CLOSED_FORM.OMEGA = float(OPEN)
    node.CLOSED_FORM.KAPPA = float(OPEN)  # how many images of a class its text counts as; filled by shots
    node.CLOSED_FORM.RHO = 0.3  # strength of the covariance's ridge, times feature width over images

    # A control of the ablation: the messages in closed form of one relation, or the negative text nodes, go to wrong
    # classes; none, text_to_visual, visual_to_text, negative
    node.SHUFFLE = "none"

    # The variant free: the same messages beside zero-shot CLIP, and no training; rows [from this many shots, value]
    node.FREE = CN()
    node.FREE.KAPPA = [[1, 4.0], [2, 2.0]]  # how many images of a class its text counts as
    node.FREE.RHO = 0.3  # strength of the covariance's ridge, times feature width over images
    node.FREE.OMEGA = [[1, 0.15], [8, 0.3], [16, 0.4]]  # weight of the messages in the logits

    # The classifiers (Eq. 7-9)
    node.BETA_C = 1.0  # sharpness of the cache affinities
    node.ALPHA_C = float(OPEN)  # weight of the visual logits in the prediction; filled by shots
    node.LAMBDA = 1.0  # weight of the visual loss in the total
    node.LOSS_SCALE = 100.0  # factor on the visual logits inside the visual loss
    node.LEAVE_ONE_OUT = True  # whether, in training, an image does not match its own cached feature

    # Training takes MAX_EPOCH epochs, but at least so many steps: small data sets have few steps per epoch
    node.MIN_STEPS = OPEN  # filled by shots
    # These rows fill the keys that are left at -1, which FILLABLE lists:
    # [data set, [KEY, VALUE, ...]] and [from this many shots, [KEY, VALUE, ...]]. The first row that has the key wins:
    # the row of the data set, then that of data set "*", then the last row with at most the run's shots.
    node.BY_DATASET = []
    node.BY_SHOTS = [[shots, list(pairs)] for shots, pairs in BY_SHOTS]

    # last_step: nothing is chosen. val: every combination of the values of SELECT, rows [KEY, [value, ...]], is
    # trained, and the one that is best on the few-shot val split is kept
    node.SELECT_ON = "last_step"
    node.SELECT = [["TRAINER.HEGRAPHADAPTER.ALPHA_C", [1.0, 2.0, 4.0, 8.0]]]

    # Temperature of the probabilities, of every method. auto: fitted on the few-shot val images or, without them, on
    # training images that are held out (experiments/calibration.py); off: 1
    node.CALIBRATE = "auto"

    node.PREC = "fp32"  # precision of the backbone on a GPU: fp32, fp16, amp; on the CPU it is always fp32
    node.FEATURES = CN()
    node.FEATURES.MODE = "bank"  # bank: encode once; online: encode every batch
    node.FEATURES.VIEWS = 10  # augmented views per training image
    node.FEATURES.DIR = "output/features"  # where encoded features are kept

    node.PROMPTS = CN()
    node.PROMPTS.SOURCE = "auto"  # templates, descriptions, both; auto: both where descriptions ship for the data set
    node.PROMPTS.TEMPLATES = []  # positive templates with one {}; []: the data set's own
    node.PROMPTS.NEGATIVE_TEMPLATES = []  # negative templates; []: the data set's own
    node.PROMPTS.DESCRIPTIONS = ""  # a JSON file {class name: [sentence, ...]}, as CuPL's; "": the one that ships


def model_options(cfg: CN) -> ModelOptions:
    """What a checked configuration asks of the model."""
    node = cfg.TRAINER.HEGRAPHADAPTER
    return ModelOptions(
        variant=node.VARIANT,
        metapath={key: node[key] for key in metapath_defaults()},
        learn_metapath=node.LEARN_METAPATH,
        weight_init=node.WEIGHT_INIT,
        text_weights=node.TEXT_W,
        bias=node.BIAS,
        beta_c=node.BETA_C,
        alpha_c=node.ALPHA_C,
        closed_form=closed_form_options(cfg),
        noise=node.NOISE,
        shuffle=node.SHUFFLE,
    )


def closed_form_options(cfg: CN) -> ClosedFormOptions:
    """The constants of messages in closed form that hold for the configured variant and shots."""
    free, trained = cfg.TRAINER.HEGRAPHADAPTER.FREE, cfg.TRAINER.HEGRAPHADAPTER.CLOSED_FORM
    if cfg.TRAINER.HEGRAPHADAPTER.VARIANT != "free":
        return ClosedFormOptions(trained.KAPPA, trained.RHO, trained.OMEGA)
    kappa, omega = (values_at_shots(rows, cfg)[-1] for rows in (free.KAPPA, free.OMEGA))
    return ClosedFormOptions(kappa, free.RHO, omega)


def values_at_shots(rows: list, cfg: CN) -> list:
    """The values of the rows [from this many shots, value] that the configured shots reach; the last of them holds."""
    shots = math.inf if cfg.DATASET.NUM_SHOTS == -1 else cfg.DATASET.NUM_SHOTS
    return values_up_to(rows, shots)


def training_options(cfg: CN) -> TrainingOptions:
    """How a checked configuration asks an adapter to be trained."""
    node, optim = cfg.TRAINER.HEGRAPHADAPTER, cfg.OPTIM
    return TrainingOptions(
        learning_rate=optim.LR,
        lr_width=node.LR_WIDTH,
        lr_tau=node.LR_TAU,
        weak_text_lr_mult=values_at_shots(node.WEAK_TEXT_LR_MULT, cfg)[-1],
        weight_lr_mult=node.WEIGHT_LR_MULT,
        visual_lr=node.VISUAL_LR,
        weight_decay=optim.WEIGHT_DECAY,
        epochs=optim.MAX_EPOCH,
        min_steps=node.MIN_STEPS,
        warmup_epochs=optim.WARMUP_EPOCH,
        warmup_lr=optim.WARMUP_CONS_LR,
        leave_one_out=node.LEAVE_ONE_OUT,
        visual_weight=node.LAMBDA,
        visual_scale=node.LOSS_SCALE,
        checkpoint_epochs=cfg.TRAIN.CHECKPOINT_FREQ,
        progress_epochs=cfg.TRAIN.PRINT_FREQ,
    )


def encoding_options(cfg: CN) -> EncodingOptions:
    """How a checked configuration asks images and sentences to be encoded."""
    node = cfg.TRAINER.HEGRAPHADAPTER
    return EncodingOptions(
        views=node.FEATURES.VIEWS,
        transforms=cfg.INPUT.TRANSFORMS,
        crop_scale=cfg.INPUT.RRCROP_SCALE,
        interpolation=cfg.INPUT.INTERPOLATION,
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        source=node.PROMPTS.SOURCE,
        templates=node.PROMPTS.TEMPLATES,
        negative_templates=node.PROMPTS.NEGATIVE_TEMPLATES,
        descriptions=node.PROMPTS.DESCRIPTIONS,
    )
