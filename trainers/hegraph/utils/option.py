"""An option is declared once: as a field of the dataclass that the code reads it from.

    weight_decay: float = option(0.01, "OPTIM.WEIGHT_DECAY", "of AdamW", least=0)

Of these fields `config.py` makes the configuration keys with their types, defaults and checks; what tells runs apart;
what a trained model keeps; and the tables of docs/configuration.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

from .errors import UserError, shown, unknown

NODE = "TRAINER.HEGRAPHADAPTER"  # keys of HeGraphAdapter's own stand below it; Dassl and CoOp know the others
# The default of a key that is filled by data set or by shots. "Open" is a value, so that what anybody set stays, also
# in a configuration that Dassl has merged and frozen
OPEN = -1
LARGEST_FLOAT = 3.4e38  # of 32 bits
LARGEST_INT = 2**31
ROWS = "rows `[from this many shots, value]`"


def is_list(value: Any) -> bool:
    """Whether a value is a list that is not empty."""
    return isinstance(value, (list, tuple)) and len(value) > 0


def is_list_of_pairs(value: Any) -> bool:
    """Whether a value is a list `[KEY, VALUE, KEY, VALUE, ...]` that is not empty."""
    return is_list(value) and len(value) % 2 == 0


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def is_strings(value: Any) -> bool:
    """Whether all entries of a list are text."""
    return all(isinstance(entry, str) for entry in value)


def is_fraction_range(value: Any) -> bool:
    """Whether a list holds two fractions above 0, the second not below the first."""
    return len(value) == 2 and all(map(is_positive, value)) and value[0] <= value[1] <= 1


def values_up_to(rows: Sequence[Sequence], shots: float) -> list:
    """The values of the rows `[from this many shots, value]` that `shots` reaches, the row of most shots last."""
    return [value for least, value in sorted(rows, key=lambda row: row[0]) if least <= shots]


POSITIVE_BY_SHOTS = (int, "[from this many shots, number above 0]", is_positive)


@dataclass(frozen=True)
class Option:
    """One key of the configuration.

    Attributes:
        key: Its name, such as "OPTIM.WEIGHT_DECAY".
        default: Its default, whose type is that of all values.
        meaning: For the page, and so with its Markdown.
        choices: All values that are allowed; () for any. Of a list, what its entries may be.
        least, above: The smallest value that is allowed, or the value that it must be above.
        form: What a list must look like, where `allows` refuses it.
        allows: Whether a value is allowed, beside the above.
        allowed: What the page says of allowed values, where it is not `choices`, `least` or `above`.
        symbol: What the option is in the paper.
        filled: Whether BY_SHOTS and BY_DATASET fill the key where it is `OPEN`.
        rows: Of a list of rows `[first, second]`: the type of the first, what a row looks like, and whether a second is
            allowed.
        by_shots: Whether the key holds rows `[from this many shots, value]`, and the field the value at the shots.
        shapes_model: Whether a trained model keeps the value, so that a test cannot change it.
        shapes_run: Whether another value makes another run. Where things are and how they are shown does not.
    """

    key: str
    default: Any
    meaning: str
    choices: tuple = ()
    least: float | None = None
    above: float | None = None
    form: str = ""
    allows: Callable[[Any], bool] | None = None
    allowed: str = ""
    symbol: str = ""
    filled: bool = False
    rows: tuple[type, str, Callable[[Any], bool]] | None = None
    by_shots: bool = False
    shapes_model: bool = False
    shapes_run: bool = True

    def check(self, value: Any) -> None:
        """Raises UserError with the key and what is allowed, if a value of the right type is not."""
        for entry in value if isinstance(self.default, (list, tuple)) and self.choices else [value]:
            if self.choices and entry not in self.choices:
                raise unknown(f"value of {self.key}", str(entry), map(str, self.choices))
        if needed := self._needed(value):
            raise UserError(f"{self.key} must {needed}, got {shown(value)}")

    def _needed(self, value: Any) -> str:
        """What a value of the right type must be or have, and is not or has not; "" for one that is allowed."""
        if self.rows is not None:
            first, form, is_second = self.rows
            if not all(is_list(r) and len(r) == 2 and isinstance(r[0], first) and is_second(r[1]) for r in value):
                return f"have rows {form}"
        if self.by_shots and (not value or min(row[0] for row in value) > 1):
            return "have a row from 1 shot on"
        if self.allows is not None and not self.allows(value):
            return f"be {self.form}"
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            return f"be a finite number of 32 bits, at most {LARGEST_FLOAT:.3g}"
        if isinstance(value, int) and not self.allows and not -LARGEST_INT <= value < LARGEST_INT:
            return "be below 2**31, and not below -2**31"
        if self.least is not None and value < self.least:
            return f"be at least {self.least:g}"
        if self.above is not None and not self.by_shots and value <= self.above:
            return f"be above {self.above:g}"
        return ""

    def at_shots(self, value: Any, shots: float) -> Any:
        """What the field holds for the key's value: of rows, the value that holds at so many shots per class."""
        return values_up_to(value, shots)[-1] if self.by_shots else value


def option(default: Any, key: str, meaning: str, *, configured: Any = MISSING, **about: Any) -> Any:
    """A field of a dataclass that is an option; `about` are the other attributes of `Option`.

    `configured` is the default of the key, where the recipe is another than the dataclass has; a `filled` key is OPEN.
    """
    if configured is MISSING:
        configured = type(default)(OPEN) if about.get("filled") else default
    declared = Option(key, configured, meaning, **about)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"option": declared})
    return field(default=default, metadata={"option": declared})


def option_of(of_field: Field) -> Option | None:
    """The declaration of a field; None for a field that is no option."""
    return of_field.metadata.get("option")


def options_of(holder: type) -> Iterator[Option]:
    """All options of a dataclass, also of the dataclasses in it, and those of a field that holds several by name."""
    for of_field in fields(holder):
        if (declared := option_of(of_field)) is not None:
            yield declared
        yield from of_field.metadata.get("options", {}).values()
        if is_dataclass(inner := of_field.default_factory):
            yield from options_of(inner)
