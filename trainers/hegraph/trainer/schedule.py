"""Learning rate schedule of HeGraphAdapter as a scheduler of torch, which Dassl steps after each epoch."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..method.training.loop import learning_rate
from ..method.training.options import TrainingOptions


class WarmCosine(LRScheduler):
    """Rates of `learning_rate` for each parameter group, whose initial rate is the peak of its cosine.

    Dassl's own warm-up scheduler passes an argument that torch has removed. The state holds plain values only.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, options: TrainingOptions) -> None:
        self.epochs = epochs
        self.warmup_epochs = options.warmup_epochs
        self.warmup_rate = options.warmup_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the epoch `last_epoch`."""
        return [self.rate(float(peak)) for peak in self.base_lrs]

    def rate(self, peak: float) -> float:
        """Return the rate of the epoch `last_epoch` for a peak."""
        return learning_rate(self.last_epoch, self.epochs, peak, self.warmup_epochs, self.warmup_rate)
