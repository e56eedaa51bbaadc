"""Declaration of options as fields of dataclasses.

    weight_decay: float = option(0.01, "OPTIM.WEIGHT_DECAY", "weight decay of AdamW", least=0)

From these fields `config.py` derives the configuration keys with types, defaults and checks, the identity of a run, the
options stored in a model, and the tables of the reference pages. `Option.check` validates keys, because pydantic has no
place for their documentation and identity; pydantic validates files and arguments (`reading.py`).

The value of a key may depend on the task, by rows `[from this many shots, value]` or `[data set, value]`. `rows_for`
finds the rows that apply, for every such key: those of HeGraphAdapter and of other methods, BY_SHOTS and BY_DATASET.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any

from .errors import UserError, unknown
from .text import shown

OUR_METHOD = "HeGraphAdapter"  # value of `--trainer` and TRAINER.NAME
NODE = f"TRAINER.{OUR_METHOD.upper()}"  # prefix of the keys of HeGraphAdapter; Dassl and CoOp have the other keys
# Default of a key that BY_SHOTS or BY_DATASET fills, outside its range. It is a value, so that explicit settings remain
# recognisable in a configuration that Dassl has merged and frozen
OPEN = -1
LARGEST_FLOAT = 3.4e38  # float32
LARGEST_INT = 2**31
SHOT_ROWS = "rows `[from this many shots, value]`"
EVERY_DATASET = ("", "*")  # names in rows of the values for all other data sets


def is_list(value: Any) -> bool:
    """Whether a value is a non-empty list."""
    return isinstance(value, (list, tuple)) and len(value) > 0


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a boolean is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return is_number(value) and 0 < value < math.inf


def is_strings(value: Any) -> bool:
    """Whether all entries of a list are strings."""
    return all(isinstance(entry, str) for entry in value)


def no_dataset(name: str) -> bool:
    """Data set of a task without a name, for `rows_for`."""
    return False


def rows_for(rows: Sequence[Sequence], shots: float, is_dataset: Callable[[str], bool] = no_dataset) -> list:
    """Values of the rows that apply to a task, by falling priority.

    Args:
        rows: Rows `[from this many shots, value]` or `[data set, value]`; the data set "" or "*" means every data set.
        shots: Number of shots per class; `math.inf` for all images.
        is_dataset: Whether a name is the name of the task's data set.

    Returns:
        The values of the data set, then those of every data set, then those by shots with the most shots first.
    """
    named = [(name, value) for name, value in rows if isinstance(name, str)]
    counted = [(least, value) for least, value in rows if not isinstance(least, str)]
    of_dataset = [value for name, value in named if is_dataset(name)]
    of_every_dataset = [value for name, value in named if name in EVERY_DATASET]
    by_shots = [value for least, value in sorted(counted, key=lambda row: row[0]) if least <= shots]
    return of_dataset + of_every_dataset + by_shots[::-1]


def images_per_class(shots: int, counts: Sequence[int] | None) -> str:
    """Text after a number of shots, such as " (8 to 16 images per class)"; "" if each class has that many images.

    `counts` are the sampled images of each class, or the fewest and the most; None if they are unknown.
    """
    if shots == -1 or not counts or set(counts) == {shots}:
        return ""
    fewest = min(counts)
    most = max(counts)
    images = f"{fewest} to {most}" if fewest < most else f"{most}"
    return f" ({images} images per class)"


def describe_shots(shots: int, counts: Sequence[int] | None = None) -> str:
    """Text such as "1 shot", "16 shots (8 to 16 images per class)", or "all images" for -1.

    `counts` are those of `images_per_class`.
    """
    return {-1: "all images", 1: "1 shot"}.get(shots, f"{shots} shots") + images_per_class(shots, counts)


@dataclass(frozen=True)
class Option:
    """One key of the configuration.

    Attributes:
        key: Name, such as "OPTIM.WEIGHT_DECAY"; in an `OptionGroup` the part after the prefix.
        default: Default value, which also sets the type.
        meaning: Description in Markdown for the reference pages.
        choices: Allowed values, or allowed entries of a list; () for any.
        least, above, most: Inclusive and exclusive lower bound, and inclusive upper bound.
        numbers: For a list of numbers, each within the bounds: its length, or 0 for one or more; None for other values.
        whole: Whether the value, or each number of a list, is a whole number.
        form: Description of the values that `allows` accepts, for error messages (default: `allowed`).
        allows: Further check of a value.
        allowed: Allowed values for the reference pages, if they do not follow from the bounds.
        filled: Whether BY_SHOTS and BY_DATASET fill the key if its value is `OPEN`, which its bounds exclude.
        rows: For a list of rows `[first, second]`: type of the first entry, description of a row, and check of the
            second entry.
        by_task: Whether the value of the key is rows for `rows_for`, each with a number or a list of numbers within the
            bounds, while the field has the one value that applies to a task.
        shapes_model: Whether a trained model stores the value, so that a test cannot change it.
        shapes_run: Whether another value makes a different run. Paths and display options do not.
    """

    key: str
    default: Any
    meaning: str
    choices: tuple = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    numbers: int | None = None
    whole: bool = False
    form: str = ""
    allows: Callable[[Any], bool] | None = None
    allowed: str = ""
    filled: bool = False
    rows: tuple[type, str, Callable[[Any], bool]] | None = None
    by_task: bool = False
    shapes_model: bool = False
    shapes_run: bool = True

    def check(self, value: Any) -> None:
        """Raise UserError if a value of the key, which has the right type, is not allowed."""
        if self.by_task:
            self._refuse(self._violated_by_rows(value), value)
        else:
            self.check_field(value)

    def check_field(self, value: Any) -> None:
        """Raise UserError if a value of the field is not allowed: for rows, a value that applies to a task."""
        entries = value if isinstance(self.default, (list, tuple)) else [value]
        for entry in entries if self.choices else ():
            if entry not in self.choices:
                raise unknown(f"value of {self.key}", str(entry), map(str, self.choices))
        self._refuse(self._violated(value), value)

    @property
    def range(self) -> str:
        """Range of a number, as the end of "a number ...": "from 0 to 1", "above 0", or "" without bounds."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        if self.above is not None and self.most is not None:
            return f"above {self.above:g}, at most {self.most:g}"
        if self.above is not None:
            return f"above {self.above:g}"
        return "" if self.least is None else f"of at least {self.least:g}"

    @property
    def number_form(self) -> str:
        """Form of one value of a row or a list of numbers, such as "list of 2 whole numbers of at least 1"."""
        noun = "whole number" if self.whole else "number"
        if self.numbers is not None:
            noun = f"list of {self.numbers or 'one or more'} {noun}s"
        return f"{noun} {self.range}".rstrip()

    def _refuse(self, requirement: str, value: Any) -> None:
        if requirement:
            raise UserError(f"{self.key} must {requirement}, got {shown(value)}", "option")

    def _violated_by_rows(self, rows: Any) -> str:
        """First requirement that rows for a task violate, as the end of "must ..."; "" if they are allowed."""
        form = f"[from this many shots, {self.number_form}] or [data set, {self.number_form}]"
        if not all(self._is_row(row) for row in rows):
            return f"have rows {form}"
        kinds = {type(first) for first, _ in rows}
        if len(kinds) > 1:
            return f"have rows of one kind, {form}"
        if kinds == {str} and not any(name in EVERY_DATASET for name, _ in rows):
            return 'have a row ["", value] for other data sets'
        return "" if rows_for(rows, shots=1) else "have a row from 1 shot on"

    def _is_row(self, row: Any) -> bool:
        """Whether a row has a number of shots or a data set, and an allowed value."""
        if not is_list(row) or len(row) != 2:
            return False
        first, value = row
        return type(first) in (int, str) and self._is_number_or_list(value)

    def _is_number_or_list(self, value: Any) -> bool:
        """Whether a value is a number within the bounds, or for `numbers` a list of them of the right length."""
        if self.numbers is None:
            return self._is_number(value)
        has_length = is_list(value) and len(value) == (self.numbers or len(value))
        return has_length and all(self._is_number(entry) for entry in value)

    def _is_number(self, value: Any) -> bool:
        """Whether a value is a number of the right type within the bounds."""
        if not is_number(value) or (self.whole and not isinstance(value, int)):
            return False
        return self._outside(value) == ""

    def _violated(self, value: Any) -> str:
        """First requirement that a value of the field violates, as the end of "must ..."; "" if it is allowed."""
        if self.rows is not None:
            first, form, is_second = self.rows
            if not all(is_list(r) and len(r) == 2 and isinstance(r[0], first) and is_second(r[1]) for r in value):
                return f"have rows {form}"
        if self.allows is not None and not self.allows(value):
            return f"be {self.form or self.allowed}"
        if self.numbers is not None or self.by_task:
            return "" if self._is_number_or_list(value) else f"be a {self.number_form}"
        if not is_number(self.default):
            return ""
        if not is_number(value) or (self.whole and not isinstance(value, int)):
            return f"be a {self.number_form}"
        return self._outside(value)

    def _outside(self, number: float) -> str:
        """Bound that a number violates, as the end of "must ..."; "" if it is within the bounds."""
        if isinstance(number, float) and not abs(number) <= LARGEST_FLOAT:
            return f"be a finite number of 32 bits, at most {LARGEST_FLOAT:.3g}"
        if isinstance(number, int) and not self.allows and not -LARGEST_INT <= number < LARGEST_INT:
            return "be below 2**31, and not below -2**31"
        if self.least is not None and number < self.least:
            return f"be at least {self.least:g}"
        if self.above is not None and number <= self.above:
            return f"be above {self.above:g}"
        if self.most is not None and number > self.most:
            return f"be at most {self.most:g}"
        return ""

    def at_shots(self, value: Any, shots: float, is_dataset: Callable[[str], bool] = no_dataset) -> Any:
        """Value of the field for a value of the key; of rows the first one of `rows_for`."""
        return rows_for(value, shots, is_dataset)[0] if self.by_task else value


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
    sample = default[0] if is_list(default) else default
    attributes.setdefault("whole", isinstance(sample, int) and not isinstance(sample, bool))
    full_key = f"{NODE}{key}" if key.startswith(".") else key
    declared = Option(full_key, configured, meaning, **attributes)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"option": declared})
    return field(default=default, metadata={"option": declared})


def option_of(of_field: Field) -> Option | None:
    """Option that a field declares; None for other fields."""
    return of_field.metadata.get("option")


def check_options(holder: Any) -> None:
    """Raise UserError if a field of a dataclass has a value that its option does not allow."""
    for of_field in fields(holder):
        declared = option_of(of_field)
        if declared is not None:
            declared.check_field(getattr(holder, of_field.name))


def options_of(holder: type) -> Iterator[Option]:
    """Iterate over the options of a dataclass, including nested dataclasses and fields with several options."""
    for of_field in fields(holder):
        declared = option_of(of_field)
        if declared is not None:
            yield declared
        yield from of_field.metadata.get("options", {}).values()
        inner = of_field.default_factory
        if is_dataclass(inner):
            yield from options_of(inner)


def with_options(
    holder: type,
    values: Mapping[str, Any],
    shots: float,
    is_dataset: Callable[[str], bool] = no_dataset,
    prefix: str = "",
) -> Any:
    """Create a dataclass of options from the values of their keys.

    Args:
        holder: The dataclass.
        values: Value of every key. Values that can change are copied.
        shots, is_dataset: Task whose rows apply, as in `rows_for`.
        prefix: Beginning of the keys, which the declarations leave out.
    """
    arguments = {}
    for of_field in fields(holder):
        declared = option_of(of_field)
        several = of_field.metadata.get("options")
        inner = of_field.default_factory
        if declared is not None:
            value = declared.at_shots(values[prefix + declared.key], shots, is_dataset)
            arguments[of_field.name] = deepcopy(value)
        elif several:
            arguments[of_field.name] = {name: values[prefix + one.key] for name, one in several.items()}
        elif is_dataclass(inner):
            arguments[of_field.name] = with_options(inner, values, shots, is_dataset, prefix)
    return holder(**arguments)


@dataclass(frozen=True)
class OptionGroup:
    """Options of a method other than HeGraphAdapter, whose keys have a common prefix.

    Attributes:
        method: Value of `--trainer`.
        holder: Dataclass of the options, whose keys leave out the prefix.
    """

    method: str
    holder: type

    @property
    def prefix(self) -> str:
        """Beginning of the keys, such as "TRAINER.TASKRES."."""
        return f"TRAINER.{self.method.upper()}."

    @property
    def options(self) -> dict[str, Option]:
        """Declarations by key, with the prefix."""
        declared = {self.prefix + one.key: one for one in options_of(self.holder)}
        return {key: replace(one, key=key) for key, one in declared.items()}

    def default_values(self) -> dict[str, Any]:
        """Return a new dict of the keys with their defaults."""
        return {key: deepcopy(declared.default) for key, declared in self.options.items()}

    def for_task(self, values: Mapping[str, Any], shots: float, is_dataset: Callable[[str], bool] = no_dataset) -> Any:
        """Options for a task from the values of the keys.

        Raises:
            UserError: If a value is not allowed.
        """
        return with_options(self.holder, values, shots, is_dataset, self.prefix)
