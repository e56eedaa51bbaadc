"""What an entry of the registry says about a file to fetch: its mirrors, its checksum, and where its members go.

Nothing is downloaded here, so that an entry can be read without importing the downloader. The mirrors that several
data sets share are at the end.

In the entries, a comment names where an address, a size or a checksum was read. None was made up: what could not be
confirmed is left out. "torchvision" and "tfds" mean the sources of torchvision 0.28 and of TensorFlow Datasets
(`url_checksums/*.txt`). Archives of one data set at different mirrors differ in their bytes and in their inner layout,
so each has a `Source` of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Member(NamedTuple):
    """A file or folder of an archive.

    Attributes:
        path: The end of its path in the archive. If several paths end so, the one nearest to the root is taken, so it
            does not matter how many folders an archive wraps around it.
        target: Where it goes, relative to the data set's folder.
    """

    path: str
    target: str


@dataclass(frozen=True)
class Source:
    """One file to fetch.

    Attributes:
        file: Its name in the data set's folder while it is there. An archive is removed once it is unpacked.
        urls: Mirrors of the same bytes, in the order in which they are tried: `https://...` or `gdrive:FILE_ID`.
        size: In bytes, where it is known.
        checksum: "md5:..." or "sha256:...", where it is known.
        unpack: Which member of an archive goes where; empty for a file that stays as it is.
        inner: The archive within the archive that holds the members; empty if there is none.
        otherwise: Another archive with the same members, which is tried when no mirror of this one works. Other missing
            parts of the data set that it holds are unpacked as well.
    """

    file: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: str | None = None
    unpack: tuple[Member, ...] = ()
    inner: str = ""
    otherwise: Source | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """What is in place once this source is fetched, relative to the data set's folder."""
        return tuple(member.target for member in self.unpack) or (self.file,)


def same(*names: str) -> tuple[Member, ...]:
    """Members that keep their names."""
    return tuple(Member(name, name) for name in names)


# --- mirrors that several data sets share

VGG = "https://www.robots.ox.ac.uk/~vgg/data"  # as in torchvision; the sizes are those of tfds

# ImageNet's class names as CLIP has them, one "<WordNet id> <name>" a line (CoOp's DATASETS.md)
IMAGENET_CLASS_NAMES = Source("classnames.txt", ("gdrive:1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF",))

# The split files of CoOp, copied in github.com/linzhiqiu/cross_modal_adaptation
CROSS_MODAL_SPLITS = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)

# A model repository of PromptKD's authors, which has all data sets but ImageNet in CoOp's layout, with the split files.
# The file names are those of its listing at this commit; checksums and exact sizes come from its pages about a file or
# a commit, where one could be read.
PROMPTKD = "https://huggingface.co/zhengli97/prompt_learning_dataset/resolve/ceb3112337fb6e1bf71534e355ca5569b63f19a6"


def coop_split(name: str, drive_id: str, size: int | None = None, sha256: str | None = None) -> Source:
    """The split file that CoOp published for a data set.

    Args:
        name: CoOp's name of the data set.
        drive_id: Its id at Google Drive, from CoOp's DATASETS.md. The copy of `CROSS_MODAL_SPLITS`, where `size` and
            `sha256` were read, is tried first because it has no quota.
        size: In bytes.
        sha256: Its checksum.
    """
    file = f"split_zhou_{name}.json"
    urls = (f"{CROSS_MODAL_SPLITS}/{file}", f"gdrive:{drive_id}")
    return Source(file, urls, size, f"sha256:{sha256}" if sha256 else None)


def promptkd_mirror(file: str, *members: str, size: int | None = None, checksum: str | None = None) -> Source:
    """An archive of `PROMPTKD` that holds `members` under their own names."""
    return Source(f"mirror-{file}", (f"{PROMPTKD}/{file}",), size, checksum, same(*members))
