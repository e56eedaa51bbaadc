"""Where the data sets come from: mirrors, checksums, and what of an archive goes where. Data only.

Each comment names where an address, size or sum was read; none was made up, and what could not be confirmed is left
open. "torchvision" and "tfds" are the sources of torchvision 0.28 and of TensorFlow Datasets (`url_checksums/*.txt`).
Archives of one set at different mirrors differ in their bytes and in their inner layout, so each has its own entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Member(NamedTuple):
    """A file or folder of an archive.

    Attributes:
        path: The end of its path in the archive. The one nearest to the root is taken, so that it does not matter in
            how many folders an archive wraps it.
        target: Where it goes, relative to the data set's folder.
    """

    path: str
    target: str


@dataclass(frozen=True)
class Source:
    """One file to fetch.

    Attributes:
        file: Its name below the data set's folder while it is there; an archive goes once it is unpacked.
        urls: Mirrors of the same bytes in the order to try: `https://...` or `gdrive:FILE_ID`.
        size: In bytes, where it is known.
        checksum: "md5:..." or "sha256:...", where it is known.
        unpack: What of an archive goes where; empty for a file that stays as it is.
        inner: The archive within the archive that holds the members; empty if there is none.
        otherwise: Another archive with the same members, for when no mirror works. It may hold other missing parts of
            the data set too, which are then taken along.
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
        """What is in place when this is done, relative to the data set's folder."""
        return tuple(member.target for member in self.unpack) or (self.file,)


def _same(*names: str) -> tuple[Member, ...]:
    return tuple(Member(name, name) for name in names)


# huggingface.co/zhengli97/prompt_learning_dataset (a model repository, of PromptKD's authors) has all but ImageNet in
# CoOp's layout, with the split files. File names: its listing at this commit; sums and exact sizes: those of its pages
# about a file or commit that could be read.
_PROMPTKD = "https://huggingface.co/zhengli97/prompt_learning_dataset/resolve/ceb3112337fb6e1bf71534e355ca5569b63f19a6"

# CoOp's split files: the ids are those of CoOp's DATASETS.md. The copies at github.com/linzhiqiu/cross_modal_adaptation
# (splits/) come first, as they have no quota; sizes and sums are theirs.
_SPLITS = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)

_VGG = "https://www.robots.ox.ac.uk/~vgg/data"  # torchvision; sizes: tfds


def _promptkd(file: str, *members: str, size: int | None = None, checksum: str | None = None) -> Source:
    return Source(f"mirror-{file}", (f"{_PROMPTKD}/{file}",), size, checksum, _same(*members))


def _split(name: str, drive_id: str, size: int | None = None, sha256: str | None = None) -> Source:
    file = f"split_zhou_{name}.json"
    return Source(file, (f"{_SPLITS}/{file}", f"gdrive:{drive_id}"), size, f"sha256:{sha256}" if sha256 else None)


# ImageNet's class names as CLIP has them, one "<WordNet id> <name>" a line: CoOp's DATASETS.md
_CLASS_NAMES = Source("classnames.txt", ("gdrive:1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF",))

SOURCES: dict[str, tuple[Source, ...]] = {
    "ImageNet": (_CLASS_NAMES,),  # the images: see BY_HAND
    "Caltech101": (
        _split(
            "Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", 809184,
            "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5",
        ),
        Source(
            "caltech-101.zip",  # torchvision
            ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
            checksum="md5:3138e1922a9193bfa496528edbbc45d0",
            unpack=_same("101_ObjectCategories"),
            inner="101_ObjectCategories.tar.gz",
            otherwise=_promptkd(
                "caltech-101.zip", "101_ObjectCategories", "split_zhou_Caltech101.json",
                checksum="sha256:ef7dced0802c60cf962273331dafb6b247059f22569edc87c3190d39f29c6f1c",
            ),
        ),
    ),
    "OxfordPets": (
        _split(
            "OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", 724217,
            "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e",
        ),
        Source(
            "images.tar.gz", (f"{_VGG}/pets/data/images.tar.gz",), 791918971,
            "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", _same("images"),
            otherwise=_promptkd("oxford_pets.zip", "images", "annotations", "split_zhou_OxfordPets.json"),
        ),
        Source(
            "annotations.tar.gz", (f"{_VGG}/pets/data/annotations.tar.gz",), 19173078,
            "md5:95a8c909bbe2e81eed6a22bccdf3f68f", _same("annotations"),
        ),
    ),
    "StanfordCars": (
        _split(
            "StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", 1855652,
            "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d",
        ),
        # ai.stanford.edu is gone (CoOp issue 61), and Kaggle's copy has other file names (CaFo issue 4)
        Source(
            "mirror-stanford_cars.zip", (f"{_PROMPTKD}/stanford_cars.zip",),
            unpack=_same("cars_train", "cars_test"),
            otherwise=Source(
                # The data set viewer of huggingface.co/datasets/koorye/Stanford-Cars lists its files at this commit
                "mirror-stanford_cars.tar.gz",
                ("https://huggingface.co/datasets/koorye/Stanford-Cars/resolve/"
                 "c118b6daafe56eaba931ae584a3ae67ad0c711d8/stanford_cars.tar.gz",),
                unpack=_same("cars_train", "cars_test"),
                # linzhiqiu in cross_modal_adaptation issue 14; its inner layout was not seen
                otherwise=Source(
                    "mirror-stanford_cars-drive", ("gdrive:150nwNkg7qXh28yabiqNAOfBMMll7ALlu",),
                    unpack=_same("cars_train", "cars_test"),
                ),
            ),
        ),
        # pytorch/vision issue 7545; size and sum: tfds, of the original
        Source(
            "car_devkit.tgz", ("https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",), 330960,
            "sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd", _same("devkit"),
        ),
        Source(
            "cars_test_annos_withlabels.mat",
            ("https://raw.githubusercontent.com/jhpohovey/StanfordCars-Dataset/main/stanford_cars/"
             "cars_test_annos_withlabels.mat",),
            185758, "sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
        ),
    ),
    "OxfordFlowers": (
        _split(
            "OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", 771139,
            "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
        ),
        Source(
            "102flowers.tgz", (f"{_VGG}/flowers/102/102flowers.tgz",), 344862509,
            "md5:52808999861908f626f3c1f4e79d11fa", _same("jpg"),
            otherwise=_promptkd(
                "oxford_flowers.zip", "jpg", "imagelabels.mat", "cat_to_name.json", "split_zhou_OxfordFlowers.json"
            ),
        ),
        Source(
            "imagelabels.mat", (f"{_VGG}/flowers/102/imagelabels.mat",), 502,
            "md5:e0620be6f572b9609742df49c70aed4d",
        ),
        Source(
            "cat_to_name.json", (f"{_SPLITS}/cat_to_name.json", "gdrive:1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"), 2212,
            "sha256:0469f1ad7fe0072d98155c49aa58649d998edbbe3326229003aa5f7228525236",
        ),
    ),
    "Food101": (
        _split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        Source(
            # torchvision, there with http; that https serves the same 4996278331 bytes is in public download logs
            "food-101.tar.gz", ("https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",), 4996278331,
            "md5:85eeb15f3717b99a5da872d97d918f87", _same("images", "meta"),
            otherwise=_promptkd("food101.zip", "images", "meta", "split_zhou_Food101.json"),
        ),
    ),
    "FGVCAircraft": (
        Source(
            # torchvision, which has no sum; that is in many public repositories, the size in two (tfds has the size of
            # the uncompressed archive)
            "fgvc-aircraft-2013b.tar.gz", (f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",), 2753340328,
            "md5:d4acdd33327262359767eeaa97a4f732",
            (
                Member("data/images", "images"),
                *(Member(f"data/{name}", name) for name in (
                    "variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt",
                )),
            ),
            otherwise=_promptkd(
                "fgvc_aircraft.zip", "images", "variants.txt", "images_variant_train.txt", "images_variant_val.txt",
                "images_variant_test.txt",
            ),
        ),
    ),
    "SUN397": (
        _split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
        # vision.princeton.edu answers 404 (torchvision issue 9348), also for Partitions.zip, whose lists CoOp only
        # reads where the split file is missing
        Source(
            "mirror-sun397.zip", (f"{_PROMPTKD}/sun397.zip",), 39182693483,
            "sha256:ce6dee6685c9f1d592c8297e193dde885aa9c50d008fd998a38ccc57a3dda722", _same("SUN397"),
        ),
    ),
    "DescribableTextures": (
        _split(
            "DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", 563702,
            "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
        ),
        Source(
            "dtd-r1.0.1.tar.gz", (f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",), 625239812,
            "md5:fff73e5086ae6bdbea199a49dfb8a4c1", _same("images", "imdb", "labels"),
            otherwise=_promptkd(
                "dtd.zip", "images", "imdb", "labels", "split_zhou_DescribableTextures.json", size=626071992,
                checksum="sha256:5ba4d3000e60f5541ba15a082033ca0696eee68125e9c28edff3dbe22f04313b",
            ),
        ),
    ),
    "EuroSAT": (
        _split(
            "EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", 3006492,
            "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
        ),
        Source(
            # torchvision; the sum is also that of the dead original, madm.dfki.de, whose size is tfds's
            "EuroSAT.zip",
            ("https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
             "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",),
            94280567, "md5:c8fa014336c82ac7804f0398fcb19387", _same("2750"),
            otherwise=Source(
                # The creators' second version; its sum is in several public repositories, its size in one
                "EuroSAT_RGB.zip", ("https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",), 94658721,
                "md5:f46e308c4d50d4bf32fedad2d3d62f3b", (Member("EuroSAT_RGB", "2750"),),
                otherwise=_promptkd("eurosat.zip", "2750", "split_zhou_EuroSAT.json"),
            ),
        ),
    ),
    "UCF101": (
        _split(
            "UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", 1557485,
            "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8",
        ),
        Source(
            "UCF-101-midframes.zip", ("gdrive:10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",),  # CoOp's DATASETS.md
            unpack=_same("UCF-101-midframes"),
            otherwise=_promptkd("ucf101.zip", "UCF-101-midframes", "split_zhou_UCF101.json"),
        ),
    ),
    "ImageNetV2": (
        _CLASS_NAMES,
        Source(
            # The creators' own copy, in place of their bucket; size and sum: its commit page. A plain tar, despite .gz
            "imagenetv2-matched-frequency.tar.gz",
            ("https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/"
             "d626240be2538720e83103a0e1178d24aca8b12c/imagenetv2-matched-frequency.tar.gz",),
            1264079360, "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
            _same("imagenetv2-matched-frequency-format-val"),
            otherwise=_promptkd("imagenetv2.zip", "imagenetv2-matched-frequency-format-val", "classnames.txt"),
        ),
    ),
    "ImageNetSketch": (
        _CLASS_NAMES,
        Source(
            # The copy of one of the creators, then the link of github.com/HaohanWang/ImageNet-Sketch
            "ImageNet-Sketch.zip",
            ("https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",
             "gdrive:1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"),
            unpack=(Member("sketch", "images"),),
            otherwise=_promptkd(
                "imagenet-sketch.zip", "images", "classnames.txt",
                checksum="sha256:8f93bc6064cf9d984a64b46925b7f53ab573224ca1c38a404d767b3565e3863f",
            ),
        ),
    ),
    "ImageNetA": (
        _CLASS_NAMES,
        Source(
            # Size and sum: tfds
            "imagenet-a.tar", ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",), 687552512,
            "sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e", _same("imagenet-a"),
            otherwise=_promptkd(
                "imagenet-adversarial.zip", "imagenet-a", "classnames.txt",
                checksum="sha256:5c577c4cde2f2b1d999a1c26c9c7da31ea7fd4c47f7ad6bc4e6d71fcf646d099",
            ),
        ),
    ),
    "ImageNetR": (
        _CLASS_NAMES,
        Source(
            # Size and sum: tfds
            "imagenet-r.tar", ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",), 2191079936,
            "sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52", _same("imagenet-r"),
            otherwise=_promptkd("imagenet-rendition.zip", "imagenet-r", "classnames.txt"),
        ),
    ),
}  # fmt: skip

# What cannot be fetched: the missing target, and how to get it
BY_HAND: dict[str, tuple[str, str]] = {
    "ImageNet": (
        "images",
        "ImageNet's images need a licence: register at https://image-net.org, download ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar, and unpack them to imagenet/images/train/<WordNet id>/ and imagenet/images/val/ below "
        "the data root (or link folders that you have there)",
    ),
}
