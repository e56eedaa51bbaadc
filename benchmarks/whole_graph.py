"""Training with the whole graph against training without `W` in messages to text nodes (`TEXT_W False`)."""

import statistics

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.method.model import build_model
from trainers.hegraph.method.training.batches import BankBatches, products_with_cache
from trainers.hegraph.method.training.loop import AdapterTraining, train_to_end

from .report import Report
from .tasks import random_bank
from .timing import alternate, ratio

SMALL = {"num_classes": 10, "width": 16, "shots": 2, "repeats": 1}


def run(num_classes: int = 101, width: int = 512, shots: int = 16, views: int = 10, repeats: int = 5) -> Report:
    bank = random_bank(num_classes, width, shots, views)
    products = products_with_cache(bank.train_features, bank.cache_keys())

    def train(text_weights: bool) -> None:
        cfg = load_cfg(opts=["DATASET.NUM_SHOTS", shots, "TRAINER.HEGRAPHADAPTER.TEXT_W", text_weights])
        data = BankBatches(bank.train_features, bank.train_labels, cfg.data.batch_size, 1, products)
        train_to_end(AdapterTraining.start(build_model(bank, cfg.model), data, cfg.training))

    seconds = alternate({"whole": lambda: train(True), "without": lambda: train(False)}, repeats)
    report = Report(
        f"Training: K = {num_classes}, d = {width}, {shots} shots",
        ["recipe", "s"],
        [
            ["the whole graph", statistics.median(seconds["whole"])],
            ["no W in messages to text nodes (TEXT_W False)", statistics.median(seconds["without"])],
        ],
    )
    report.at_most("the whole graph over TEXT_W False", ratio(seconds["whole"], seconds["without"]), 2.0)
    return report
