"""Declaration of options as fields of dataclasses.

    weight_decay: float = option(0.01, "OPTIM.WEIGHT_DECAY", "weight decay of AdamW", least=0)

From these fields `config.py` derives the configuration keys with types, defaults and checks, the identity of a run, the
options stored in a model, and the tables of docs/reference/configuration.md. `Option.check` validates keys, because
pydantic has no place for their documentation and identity; pydantic validates files and arguments (`reading.py`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

from .errors import UserError, unknown
from .text import shown

OUR_METHOD = "HeGraphAdapter"  # value of `--trainer` and TRAINER.NAME
NODE = f"TRAINER.{OUR_METHOD.upper()}"  # prefix of the keys of HeGraphAdapter; Dassl and CoOp have the other keys
# Default of a key that BY_SHOTS or BY_DATASET fills. It is a value, so that explicit settings remain recognisable in a
# configuration that Dassl has merged and frozen
OPEN = -1
LARGEST_FLOAT = 3.4e38  # float32
LARGEST_INT = 2**31
SHOT_ROWS = "rows `[from this many shots, value]`"


def is_list(value: Any) -> bool:
    """Whether a value is a non-empty list."""
    return isinstance(value, (list, tuple)) and len(value) > 0


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def is_strings(value: Any) -> bool:
    """Whether all entries of a list are strings."""
    return all(isinstance(entry, str) for entry in value)


def values_up_to(rows: Sequence[Sequence], shots: float) -> list:
    """Values of the rows `[from this many shots, value]` up to `shots`, in ascending order of shots."""
    return [value for least, value in sorted(rows, key=lambda row: row[0]) if least <= shots]


POSITIVE_BY_SHOTS = (int, "[from this many shots, number above 0]", is_positive)


def images_per_class(shots: int, counts: Sequence[int] | None) -> str:
    """Text after a number of shots, such as " (8 to 16 images per class)"; "" if each class has that many images.

    `counts` are the sampled images of each class, or the fewest and the most; None if they are unknown.
    """
    if shots == -1 or not counts or set(counts) == {shots}:
        return ""
    fewest, most = min(counts), max(counts)
    return f" ({f'{fewest} to ' if fewest < most else ''}{most} images per class)"


def describe_shots(shots: int, counts: Sequence[int] | None = None) -> str:
    """Text such as "1 shot", "16 shots (8 to 16 images per class)", or "all images" for -1.

    `counts` are those of `images_per_class`.
    """
    return {-1: "all images", 1: "1 shot"}.get(shots, f"{shots} shots") + images_per_class(shots, counts)


@dataclass(frozen=True)
class Option:
    """One key of the configuration.

    Attributes:
        key: Name, such as "OPTIM.WEIGHT_DECAY".
        default: Default value, which also sets the type.
        meaning: Description in Markdown for docs/reference/configuration.md.
        choices: Allowed values, or allowed entries of a list; () for any.
        least, above: Inclusive and exclusive lower bound.
        form: Description of the values that `allows` accepts, for error messages (default: `allowed`).
        allows: Further check of a value.
        allowed: Allowed values for docs/reference/configuration.md, if they do not follow from the bounds.
        filled: Whether BY_SHOTS and BY_DATASET fill the key if its value is `OPEN`.
        rows: For a list of rows `[first, second]`: type of the first entry, description of a row, and check of the
            second entry.
        by_shots: Whether the value of the key is rows `[from this many shots, value]`, while the field has one value.
        shapes_model: Whether a trained model stores the value, so that a test cannot change it.
        shapes_run: Whether another value makes a different run. Paths and display options do not.
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
    filled: bool = False
    rows: tuple[type, str, Callable[[Any], bool]] | None = None
    by_shots: bool = False
    shapes_model: bool = False
    shapes_run: bool = True

    def check(self, value: Any) -> None:
        """Raise UserError if a value of the right type is not allowed."""
        for entry in value if isinstance(self.default, (list, tuple)) and self.choices else [value]:
            if self.choices and entry not in self.choices:
                raise unknown(f"value of {self.key}", str(entry), map(str, self.choices))
        if requirement := self._violated(value):
            raise UserError(f"{self.key} must {requirement}, got {shown(value)}", "option")

    def _violated(self, value: Any) -> str:
        """First requirement that a value of the right type violates, as the end of "must ..."; "" if it is allowed."""
        if self.rows is not None:
            first, form, is_second = self.rows
            if not all(is_list(r) and len(r) == 2 and isinstance(r[0], first) and is_second(r[1]) for r in value):
                return f"have rows {form}"
        if self.by_shots and (not value or min(row[0] for row in value) > 1):
            return "have a row from 1 shot on"
        if self.allows is not None and not self.allows(value):
            return f"be {self.form or self.allowed}"
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
        """Value of the field for the value of the key; rows give the value at this number of shots per class."""
        return values_up_to(value, shots)[-1] if self.by_shots else value


def option(default: Any, key: str, meaning: str, *, configured: Any = MISSING, **attributes: Any) -> Any:
    """Declare a dataclass field as an option.

    Args:
        default: Default of the field in Python.
        key: Configuration key; ".KEY" is below `TRAINER.HEGRAPHADAPTER`.
        meaning: Description of the key.
        configured: Default of the key, if it differs from `default`; `OPEN` for a `filled` key.
        attributes: Further attributes of `Option`.
    """
    if configured is MISSING:
        configured = type(default)(OPEN) if attributes.get("filled") else default
    declared = Option(f"{NODE}{key}" if key.startswith(".") else key, configured, meaning, **attributes)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"option": declared})
    return field(default=default, metadata={"option": declared})


def option_of(of_field: Field) -> Option | None:
    """Option that a field declares; None for other fields."""
    return of_field.metadata.get("option")


def check_options(holder: Any) -> None:
    """Raise UserError if a field of a dataclass has a value that its option does not allow."""
    for of_field in fields(holder):
        if (declared := option_of(of_field)) is not None:
            declared.check(getattr(holder, of_field.name))


def options_of(holder: type) -> Iterator[Option]:
    """Iterate over the options of a dataclass, including nested dataclasses and fields with several options."""
    for of_field in fields(holder):
        if (declared := option_of(of_field)) is not None:
            yield declared
        yield from of_field.metadata.get("options", {}).values()
        if is_dataclass(inner := of_field.default_factory):
            yield from options_of(inner)
