"""Numbers of training images per class, for tasks whose classes have unequal numbers of images.

`ShotsPerClass` reads the option DATASET.SHOTS_PER_CLASS, which has one of two forms:

- "16,4,1": the number of images of each class, in label order;
- "long-tailed:LOW-HIGH": numbers that fall geometrically from HIGH to LOW. The seed chooses the order of the classes.

Of K classes, the class at position j = 0, ..., K - 1 of the order has

    S_j = round(HIGH (LOW / HIGH)^(j / (K - 1)))

images: the exponential profile of long-tailed CIFAR (Cui et al., CVPR 2019), with an order by the seed in place of the
label order. All seeds have the same numbers, and thus the same number of images.
"""

import math
import re
from dataclasses import dataclass
from random import Random

from ..utils.errors import UserError
from ..utils.text import shown

SHOTS_PER_CLASS = "DATASET.SHOTS_PER_CLASS"
ALLOWED = "`long-tailed:LOW-HIGH`, or a number for each class, such as `16,4,1`"
_NUMBER = r"([1-9][0-9]{0,8})"  # below 2^31
_LONG_TAILED = re.compile(f"long-tailed:{_NUMBER}-{_NUMBER}")
_LISTED = re.compile(f"{_NUMBER}(,{_NUMBER})*")


@dataclass(frozen=True)
class ShotsPerClass:
    """Numbers of training images of the classes.

    Attributes:
        listed: Number of images of each class, in label order; () for a long-tailed draw.
        fewest, most: Numbers of images of the smallest and of the largest class.
    """

    listed: tuple[int, ...]
    fewest: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "ShotsPerClass":
        """Read a value of the option.

        Raises:
            UserError: If it has neither of the two forms.
        """
        if not is_shots_per_class(text):
            raise UserError(f"{SHOTS_PER_CLASS} must be {ALLOWED}, got {shown(text)}", "shots")
        if match := _LONG_TAILED.fullmatch(text):
            return cls((), int(match[1]), int(match[2]))
        listed = tuple(int(number) for number in text.split(","))
        return cls(listed, min(listed), max(listed))

    @property
    def mean(self) -> float:
        """Mean number of images per class; for a long-tailed draw of many classes, the mean of its curve."""
        if self.listed:
            return sum(self.listed) / len(self.listed)
        ratio = self.most / self.fewest
        return self.most if ratio == 1 else (self.most - self.fewest) / math.log(ratio)

    def counts(self, num_classes: int, rng: Random) -> list[int]:
        """Return the number of images of each of K classes, in label order.

        Args:
            num_classes: Number of classes, K.
            rng: Generator that chooses the order of the classes of a long-tailed draw; unused for a list.

        Raises:
            UserError: If the list has another length.
        """
        if self.listed and len(self.listed) != num_classes:
            problem = f"{SHOTS_PER_CLASS} has {len(self.listed)} numbers for {num_classes} classes"
            raise UserError(f"{problem}; give one number for each class, in label order", "shots")
        if self.listed:
            return list(self.listed)
        order = list(range(num_classes))
        rng.shuffle(order)
        counts = [self.most] * num_classes
        for position, label in enumerate(order):
            share = position / max(num_classes - 1, 1)
            counts[label] = round(self.most * (self.fewest / self.most) ** share)
        return counts


def is_shots_per_class(text: str) -> bool:
    """Whether a text is a value of the option: a long-tailed draw with LOW at most HIGH, or a list of numbers."""
    match = _LONG_TAILED.fullmatch(text)
    if match is None:
        return _LISTED.fullmatch(text) is not None
    return int(match[1]) <= int(match[2])


def check_shots(shots: int, shots_per_class: str) -> None:
    """Raise UserError if the largest of the unequal numbers of shots, if there are any, is not `shots`."""
    if shots_per_class and (most := ShotsPerClass.parse(shots_per_class).most) != shots:
        problem = f"{SHOTS_PER_CLASS} {shots_per_class} needs DATASET.NUM_SHOTS {most}, its largest number, got {shots}"
        raise UserError(f"{problem}; add --shots {most}", "shots.most")


def shots_of_classes(shots: int, shots_per_class: str, num_classes: int, rng: Random) -> int | list[int]:
    """Return the argument `shots` of `splits.sample_few_shot`.

    Args:
        shots: Number of training images of each class, or -1 for all.
        shots_per_class: Value of the option, which replaces `shots`; "" for equal numbers.
        num_classes, rng: As for `ShotsPerClass.counts`.

    Raises:
        UserError: If the option has another form, or a list of another length.
    """
    return ShotsPerClass.parse(shots_per_class).counts(num_classes, rng) if shots_per_class else shots
