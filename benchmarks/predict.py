"""Prediction from features with a folded classifier, against zero-shot CLIP and Tip-Adapter."""

import statistics

import torch

from trainers.hegraph.baselines import load_method
from trainers.hegraph.method.cache import QUERY_BATCH
from trainers.hegraph.method.model import build_model
from trainers.hegraph.method.options import ModelOptions

from .report import Report
from .tasks import random_bank
from .timing import alternate, ratio

SMALL = {"num_classes": 10, "width": 16, "images": 30, "repeats": 1}


@torch.no_grad()
def run(num_classes: int = 1000, width: int = 1024, shots: int = 16, images: int = 4096, repeats: int = 7) -> Report:
    bank = random_bank(num_classes, width, shots, test=images)
    full, text = (build_model(bank, ModelOptions(variant=variant)) for variant in ("full", "T"))
    folded_full, folded_text = full.fold(), text.fold()
    tip_adapter = load_method("TipAdapter")
    tip = tip_adapter.fit(bank.without_test(), tip_adapter.options(), seed=1)
    weights, features = bank.logit_scale * bank.text_positive, bank.test_features
    seconds = alternate(
        {
            "zero-shot CLIP": lambda: features @ weights.t(),
            "ours, text only": lambda: folded_text.parts(features),
            "Tip-Adapter, training-free": lambda: torch.cat([tip.logits(b) for b in features.split(QUERY_BATCH)]),
            "ours, full": lambda: folded_full.logits(features),
        },
        repeats,
    )
    to_zero_shot = ratio(seconds["ours, text only"], seconds["zero-shot CLIP"])
    to_tip = ratio(seconds["ours, full"], seconds["Tip-Adapter, training-free"])
    report = Report(
        f"Prediction of {images} images: K = {num_classes}, d = {width}, {shots} shots",
        ["classifier", "ms"],
        [[name, 1000 * statistics.median(s)] for name, s in seconds.items()],
    )
    report.at_most("text only over zero-shot", to_zero_shot, 1.05)
    report.at_most("full over Tip-Adapter", to_tip, 1.05)
    return report
