"""Groups of the images of a teach project, which a pattern finds in their current paths."""

import logging
import shlex
from collections.abc import Collection

from torch import Tensor, tensor

from ...datasets.groups import groups_in_paths, match_groups
from ...estimator.inputs import checked_groups
from ...models.support_set import groups_of_their_own
from ...utils.errors import UserError
from .contents import Contents, Picture, images
from .project import Project

logger = logging.getLogger(__name__)


def groups_of_pictures(pictures: Collection[Picture], pattern: str) -> Tensor | None:
    """Number the groups of N images, as in `SupportSet.groups`; None without a pattern.

    A group has the number that `HeGraphClassifier.partial_fit` gives to its name.

    Args:
        pictures: The images. Those without a match are groups of their own.
        pattern: Well-formed regular expression as for `groups_in_paths`, or "".
    """
    if not pattern:
        return None
    paths = [picture.path for picture in pictures]
    group_of = match_groups(paths, pattern)
    numbers = groups_of_their_own(len(paths), None)
    rows = [row for row, path in enumerate(paths) if path in group_of]
    named = checked_groups([group_of[paths[row]] for row in rows], len(rows))
    assert named is not None
    numbers[tensor(rows, dtype=numbers.dtype)] = named
    return numbers


def lacks_groups(contents: Contents, pattern: str) -> bool:
    """Whether there are images, and a well-formed pattern matches the path of none."""
    paths = [picture.path for picture in contents.pictures()]
    return bool(paths) and not match_groups(paths, pattern)


def log_groups(contents: Contents, pattern: str) -> None:
    """Log the number of groups that a well-formed pattern finds, or a warning that it matches no image yet."""
    paths = [picture.path for picture in contents.pictures()]
    try:
        groups = groups_in_paths(paths, pattern)
    except UserError as error:
        logger.warning("%s; each image is a group of its own until a path matches", error)
        return
    summary = "groups: %d in the paths of %s, by --group-pattern %s; --group-pattern '' forgets the pattern"
    logger.info(summary, len({*groups.values()}), images(len(groups)), shlex.quote(pattern))


def warn_of_folders(project: Project, contents: Contents) -> None:
    """Warn of folders of images in class folders, which other commands read as groups.

    The page skips them: it moves images between classes and adds images to class folders, and the other commands read
    no folder in a class folder once a class folder has an image of its own.
    """
    skipped = project.folders_in_classes(contents)
    if skipped:
        warning = "%s: skipped folders in class folders (%d), such as %s; %s"
        remedy = "move their images to the class folders, with the group in the file names, and add --group-pattern"
        logger.warning(warning, project.folder, len(skipped), skipped[0], remedy)
