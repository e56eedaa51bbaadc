"""How an adapter is trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.option import NODE, POSITIVE_BY_SHOTS, ROWS, option


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `AdapterTraining`; each says what it means."""

    learning_rate: float = option(
        0.001, "OPTIM.LR", "learning rate of the biases, meant for features of width `LR_WIDTH`", filled=True, least=0
    )
    lr_width: int = option(
        512,
        f"{NODE}.LR_WIDTH",
        "feature width that `OPTIM.LR` is meant for; at width d it is times the root of `LR_WIDTH` / d; 0: any width",
        least=0,
    )
    lr_tau: float = option(
        0.0,
        f"{NODE}.LR_TAU",
        "logit scale that `OPTIM.LR` is meant for; at scale τ it is times `LR_TAU` / τ; 0: any scale",
        configured=100.0,
        least=0,
    )
    weak_text_lr_mult: float = option(
        1.0,
        f"{NODE}.WEAK_TEXT_LR_MULT",
        "factor on `OPTIM.LR` where zero-shot CLIP knows less than 0.65 of what there is to know about the classes of "
        f"the training images (McFadden's R² = 1 - NLL / log K); {ROWS}",
        configured=[[1, 3.0], [2, 1.0]],
        rows=POSITIVE_BY_SHOTS,
        by_shots=True,
        above=0,
    )
    weight_lr_mult: float = option(
        0.1, f"{NODE}.WEIGHT_LR_MULT", "learning rate of the matrices `W`, as a multiple of the biases'", least=0
    )
    visual_lr: float = option(
        0.02, f"{NODE}.VISUAL_LR", "learning rate of all that belongs to the visual relation", filled=True, least=0
    )
    weight_decay: float = option(0.01, "OPTIM.WEIGHT_DECAY", "of AdamW", least=0)
    epochs: int = option(15, "OPTIM.MAX_EPOCH", "passes over the training images", configured=15, filled=True, least=1)
    min_steps: int = option(
        0, f"{NODE}.MIN_STEPS", "the least number of steps; small sets get more epochs for it", filled=True, least=0
    )
    warmup_epochs: int = option(
        1, "OPTIM.WARMUP_EPOCH", "epochs at the rate of the warm-up, before the cosine begins; 0 or below: none"
    )
    warmup_lr: float = option(1e-5, "OPTIM.WARMUP_CONS_LR", "learning rate of the warm-up", least=0)
    leave_one_out: bool = option(
        True, f"{NODE}.LEAVE_ONE_OUT", "in training, an image does not match its own cached feature", symbol="left open"
    )
    visual_weight: float = option(1.0, f"{NODE}.LAMBDA", "weight of the visual loss", least=0, symbol="λ, Eq. 9")
    visual_scale: float = option(
        100.0, f"{NODE}.LOSS_SCALE", "factor on the visual logits inside the visual loss", least=0, symbol="left open"
    )
    checkpoint_epochs: int = option(
        0,
        "TRAIN.CHECKPOINT_FREQ",
        "epochs between checkpoints that also keep the adapter for `--load-epoch`; 0: one whenever 10 s have passed",
        least=0,
        shapes_run=False,
    )
    progress_epochs: int = option(5, "TRAIN.PRINT_FREQ", "epochs between two shown losses", least=1, shapes_run=False)
