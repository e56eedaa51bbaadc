"""Options of the training, with their configuration keys."""

from dataclasses import dataclass

from ...utils.option import SHOT_ROWS, option

BINS = 15  # of the expected calibration error and its reliability diagram


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `AdapterTraining`. Defaults in Python are the paper's, defaults of the configuration keys are ours."""

    learning_rate: float = option(0.001, "OPTIM.LR", "learning rate of the biases", filled=True, least=0)
    lr_width: int = option(
        512,
        ".LR_WIDTH",
        "feature width of `OPTIM.LR`: the rate is multiplied by √(`LR_WIDTH` / width); 0: no scaling",
        least=0,
    )
    lr_tau: float = option(
        0.0,
        ".LR_TAU",
        "logit scale of `OPTIM.LR`: the rate is multiplied by `LR_TAU` / scale; 0: no scaling",
        configured=100.0,
        least=0,
    )
    weak_text_lr_mult: float = option(
        1.0,
        ".WEAK_TEXT_LR_MULT",
        f"factor on `OPTIM.LR` if McFadden's R² of zero-shot CLIP on the training images is below 0.65; {SHOT_ROWS}",
        configured=[[1, 3.0], [2, 1.0]],
        by_task=True,
        above=0,
    )
    weight_lr_mult: float = option(0.1, ".WEIGHT_LR_MULT", "learning rate of `W`, as a multiple of `OPTIM.LR`", least=0)
    visual_lr: float = option(0.02, ".VISUAL_LR", "learning rate of the visual relation", filled=True, least=0)
    weight_decay: float = option(0.01, "OPTIM.WEIGHT_DECAY", "weight decay of AdamW", least=0)
    epochs: int = option(15, "OPTIM.MAX_EPOCH", "number of training epochs", configured=15, filled=True, least=1)
    min_steps: int = option(
        0, ".MIN_STEPS", "minimum number of training steps, in more epochs if necessary", filled=True, least=0
    )
    warmup_epochs: int = option(1, "OPTIM.WARMUP_EPOCH", "number of warm-up epochs")
    warmup_lr: float = option(1e-5, "OPTIM.WARMUP_CONS_LR", "learning rate of the warm-up", least=0)
    leave_one_out: bool = option(
        True, ".LEAVE_ONE_OUT", "whether training leaves out the cache key of the query image (the paper does not say)"
    )
    visual_weight: float = option(1.0, ".LAMBDA", "weight of the cache loss (λ, Eq. 9)", least=0)
    visual_scale: float = option(
        100.0, ".LOSS_SCALE", "factor on the cache logits in the cache loss (the paper does not say)", least=0
    )
    checkpoint_epochs: int = option(
        0,
        "TRAIN.CHECKPOINT_FREQ",
        "number of epochs between saved models for `--load-epoch`; 0: none, and a checkpoint every 10 s",
        least=0,
        shapes_run=False,
    )
    progress_epochs: int = option(
        5, "TRAIN.PRINT_FREQ", "number of epochs between two log lines", least=1, shapes_run=False
    )
