"""The methods of `baselines/` as trainers, which fit themselves without Dassl's loop over epochs."""

import time

from torch import Tensor

from ..baselines.base import FittedMethod
from ..experiments.evaluation import encode_targets
from ..experiments.fitting import fit
from ..utils.command_line import echo
from ..utils.errors import UserError
from .base import FeatureTrainer


class BaselineTrainer(FeatureTrainer):
    """Base of the trainers of the methods in `baselines/`."""

    fitted: FittedMethod | None = None

    def build_model(self) -> None:
        """Build nothing: `train` fits the method."""

    def train_in_folder(self) -> dict:
        started = time.monotonic()
        bank = self.task.bank().to(self.device.type)
        seconds = time.monotonic() - started
        encode_targets(self.task)
        self.fitted = fit(self.task, bank)
        echo("Finish training\n")  # as after Dassl's epochs; CoOp's parse_test_res.py reads scores below this line
        if not self.cfg.TEST.NO_TEST:
            self.test()
        return self.finish(self.fitted, seconds)

    def classify(self, features: Tensor) -> Tensor:
        if self.fitted is None:
            raise UserError(f"{self.method} is not fitted yet: call train() or load_model() first")
        return self.fitted.logits(features)


def baseline_trainer(name: str) -> type[BaselineTrainer]:
    """Return the trainer class of a method of `baselines/`; nothing is registered."""
    return type(name, (BaselineTrainer,), {"method": name})
