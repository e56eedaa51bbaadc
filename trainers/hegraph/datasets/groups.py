"""Groups of images, such as the frames of a video, which splits, folds and few-shot samples keep together.

Images of one group look alike, so a test on images of training groups says little about new groups. A group may span
classes. Groups come from the data (docs/guides/groups.md) and are never guessed: an image without a group is a group of
its own.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from ..utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_FOLDS = 4
NOT_HELD_OUT = -1  # fold of images that are in every training part
PATTERN_RULE = "expected a regular expression with one group in parentheses"
PATTERN_HELP = "regular expression that finds the group of an image in its path, as DATASET.GROUP_PATTERN"

Group = Hashable
Label = int | tuple[int, ...]  # with several labels per image, a tuple


def shared_groups_only(groups: Sequence[Group] | None) -> Sequence[Group] | None:
    """Return the groups of images, or None if no two images share a group, so that groups do not matter."""
    return groups if groups is not None and len(set(groups)) < len(groups) else None


def labels_of_image(label: Label) -> tuple[int, ...]:
    """Return the labels of an image with one label or a tuple of labels."""
    return label if isinstance(label, tuple) else (label,)


def is_group_pattern(pattern: str) -> bool:
    """Whether a text is a regular expression with one group in parentheses."""
    try:
        return re.compile(pattern).groups == 1
    except (re.error, RecursionError, OverflowError):
        return False


def check_group_pattern(pattern: str) -> None:
    """Raise UserError unless a text is a regular expression with one group in parentheses."""
    if not is_group_pattern(pattern):
        raise UserError(f"DATASET.GROUP_PATTERN: {PATTERN_RULE}, got {pattern!r}")


def match_groups(paths: Iterable[str], pattern: str) -> dict[str, str]:
    """Return the group of each path that `pattern` matches; it is as for `groups_in_paths`, and well-formed."""
    compiled = re.compile(pattern)
    groups = {}
    for path in paths:
        match = compiled.search(path)
        group = match[1] if match else None  # also None where a match has no group, as of (a)?
        if group and group.strip():
            groups[path] = group
    return groups


def groups_in_paths(paths: Sequence[str], pattern: str) -> dict[str, str]:
    """Return the group of each path that `pattern` matches, and warn of the others.

    Args:
        paths: Paths of images, with `/`, relative to the root.
        pattern: Regular expression with one group in parentheses, which is searched in each path.

    Raises:
        UserError: If the pattern is malformed, or matches no path.
    """
    check_group_pattern(pattern)
    groups = match_groups(paths, pattern)
    others = [path for path in paths if path not in groups]
    if paths and not groups:
        raise UserError(f"DATASET.GROUP_PATTERN {pattern!r} matches none of {len(paths)} paths, such as {paths[0]}")
    if others:
        warning = "DATASET.GROUP_PATTERN matches %d of %d paths; each other image is a group of its own, such as %s"
        logger.warning(warning, len(groups), len(paths), others[0])
    return groups


# --- assignment to the parts of a split, or to folds


@dataclass
class _Part:
    """A part that groups are assigned to.

    Attributes:
        room: Number of images that it still lacks; below 0 for too many.
        lacking: The same by class.
        assigned: Number of its images by class.
    """

    room: float
    lacking: dict[int, float]
    assigned: Counter[int] = field(default_factory=Counter)

    def add(self, own: Mapping[int, int], size: int) -> None:
        """Add a group of `size` images, with `own` images by class."""
        self.room -= size
        self.assigned.update(own)
        for label, number in own.items():
            self.lacking[label] -= number

    def demand(self, own: Mapping[int, int]) -> float:
        """How well a group with `own` images by class fits what the part lacks."""
        return sum(number * self.lacking[label] for label, number in own.items())


def assign_parts(labels: Sequence[Label], groups: Sequence[Group], shares: Sequence[float], rng: Random) -> list[int]:
    """Assign whole groups to parts, so that each part has about its share of the images of every class.

    Groups are visited from the largest to the smallest, in random order among equal ones. Each goes to the part that
    lacks the most images of its classes. If a class has no more groups left than parts without its images, these parts
    come first.

    Args:
        labels: Label of each image.
        groups: Group of each image.
        shares: Share of each part; they add up to 1.
        rng: Generator of the order of groups.

    Returns:
        Part of each image, from 0.
    """
    sizes = Counter(groups)
    counts: defaultdict[Group, Counter[int]] = defaultdict(Counter)  # images of each class
    totals: Counter[int] = Counter()
    for label, group in zip(labels, groups):
        counts[group].update(labels_of_image(label))
        totals.update(labels_of_image(label))
    parts = []
    for share in shares:
        parts.append(_Part(share * len(groups), {label: share * total for label, total in totals.items()}))
    unassigned = Counter(label for own in counts.values() for label in own)  # groups by class
    order = list(counts)
    rng.shuffle(order)
    order.sort(key=lambda group: -sizes[group])
    part_of: dict[Group, int] = {}
    for group in order:
        own = counts[group]
        part_of[group] = number = _best_part(parts, own, unassigned)
        parts[number].add(own, sizes[group])
        unassigned.subtract(own.keys())
    return [part_of[group] for group in groups]


def _best_part(parts: Sequence[_Part], own: Mapping[int, int], unassigned: Mapping[int, int]) -> int:
    """Return the part for a group with `own` images by class; `unassigned` groups by class include this one."""
    urgent = []
    for label in own:
        without = [part for part in parts if not part.assigned[label]]
        if unassigned[label] <= len(without):
            urgent.append(label)

    def priority(number: int) -> tuple[int, float, float]:
        part = parts[number]
        first = [label for label in urgent if not part.assigned[label]]
        return len(first), part.demand(own), part.room

    return max(range(len(parts)), key=priority)


def balanced_folds(labels: Sequence[int], groups: Sequence[Group] | None, seed: int) -> list[int]:
    """Assign images to folds in which every class loses images at once, and no class all of them.

    Groups stay whole. A group is in no fold if a class would lose all its images with it, such as the only group of a
    class. The number of folds is the number of groups of the class with the most, at most `MAX_FOLDS`. Without groups,
    each image is a group of its own.

    Args:
        labels: Class of each image.
        groups: Group of each image, or None.
        seed: Seed of the folds.

    Returns:
        Fold of each image, from 0, or `NOT_HELD_OUT`.
    """
    groups = shared_groups_only(groups)
    if groups is None:
        return _folds_of_images(labels, seed)
    number = number_of_folds(labels, groups)
    if number < 2:
        return [NOT_HELD_OUT] * len(labels)
    folds = assign_parts(labels, groups, [1 / number] * number, Random(seed))
    fold_of = with_all_classes(dict(zip(groups, folds)), labels, groups)
    used = sorted({*fold_of.values()} - {NOT_HELD_OUT})  # without folds that are empty now
    return [used.index(fold_of[group]) if fold_of[group] in used else NOT_HELD_OUT for group in groups]


def groups_by_class(labels: Sequence[int], groups: Sequence[Group]) -> dict[int, set[Group]]:
    """Return the groups with images of each class, in the order of the classes' first images."""
    groups_of_class: defaultdict[int, set[Group]] = defaultdict(set)
    for label, group in zip(labels, groups):
        groups_of_class[label].add(group)
    return groups_of_class


def number_of_folds(labels: Sequence[int], groups: Sequence[Group]) -> int:
    """Return the number of groups of the class with the most, at most `MAX_FOLDS`."""
    return min(max(map(len, groups_by_class(labels, groups).values()), default=0), MAX_FOLDS)


def with_all_classes(fold_of: Mapping[Group, int], labels: Sequence[int], groups: Sequence[Group]) -> dict[Group, int]:
    """Take the largest group of each class that is in one fold out of the folds, so that no class loses all images.

    Args:
        fold_of: Fold of each group.
        labels, groups: Class and group of each image.

    Returns:
        Fold of each group, or `NOT_HELD_OUT`.
    """
    kept = dict(fold_of)
    sizes = Counter(groups)
    for own in groups_by_class(labels, groups).values():
        if len({kept[group] for group in own}) == 1:
            largest = max(own, key=lambda group: (sizes[group], str(group)))
            kept[largest] = NOT_HELD_OUT
    return kept


def _folds_of_images(labels: Sequence[int], seed: int) -> list[int]:
    """Return `balanced_folds` of images without groups."""
    generator = Random(seed)
    rows_of_class: defaultdict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of_class[label].append(row)
    order: list[int] = []
    for _, rows in sorted(rows_of_class.items()):
        generator.shuffle(rows)
        order += rows
    return folds_in_order(labels, order)


def folds_in_order(labels: Sequence[int], order: Iterable[int]) -> list[int]:
    """Assign the images of each class to the folds in turn, in the order of their indices in `order`.

    The only image of a class is in no fold.

    Args:
        labels: Class of each image.
        order: Indices of all images.

    Returns:
        Folds as in `balanced_folds`.
    """
    sizes = Counter(labels)
    number = min(max(sizes.values(), default=0), MAX_FOLDS)
    folds = [NOT_HELD_OUT] * len(labels)
    position: Counter[int] = Counter()
    for row in order:
        label = labels[row]
        if sizes[label] > 1:
            folds[row] = position[label] % number
            position[label] += 1
    return folds


# --- few-shot samples


def sample_groups(rows: Sequence[int], number: int, groups: Sequence[Group], rng: Random) -> list[int]:
    """Sample images by whole groups in random order; the last group contributes only as many images as are missing.

    Args:
        rows: Images to sample from.
        number: Number of images to sample, at most the number of rows.
        groups: Group of each image; `rows` are its indices.
        rng: Generator of the sample.
    """
    by_group: defaultdict[Group, list[int]] = defaultdict(list)
    for row in rows:
        by_group[groups[row]].append(row)
    order = list(by_group.values())
    rng.shuffle(order)
    sample: list[int] = []
    for members in order:
        missing = number - len(sample)
        sample += members if len(members) <= missing else rng.sample(members, missing)
    return sample


# --- groups that several splits share


class SharedGroups(NamedTuple):
    """Images of val and test whose groups occur in train.

    Attributes:
        groups: Number of groups in train, val and test together.
        val, test: Number of images of val and of test.
        val_in_train, test_in_train: Number of those whose group occurs in train.
    """

    groups: int
    val: int
    test: int
    val_in_train: int
    test_in_train: int

    @classmethod
    def of(cls, train: Collection[Group], val: Collection[Group], test: Collection[Group]) -> "SharedGroups":
        """Compare the groups of the images of three splits."""
        trained = set(train)
        val_in_train = sum(group in trained for group in val)
        test_in_train = sum(group in trained for group in test)
        return cls(len({*train, *val, *test}), len(val), len(test), val_in_train, test_in_train)

    @property
    def warning(self) -> str:
        """Sentence on the images of val and test that share groups with train; "" if there are none."""
        parts = []
        for split, shared, total in (
            ("test", self.test_in_train, self.test), ("val", self.val_in_train, self.val),
        ):  # fmt: skip
            if shared:
                parts.append(f"{shared} of {total} {split} images ({100 * shared / total:.1f} %)")
        if not parts:
            return ""
        return f"the groups of {' and '.join(parts)} occur in train, so their accuracy overstates that on new groups"
