"""EuroSAT: satellite images of 10 kinds of land use. It has no official split."""

from __future__ import annotations

from functools import partial

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import Member, Source, coop_split, promptkd_mirror, same
from ..layouts import split_class_folders

# Folder -> class name; the other folders are named as their classes
NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}

ENTRY = DatasetEntry(
    name="EuroSAT",
    folder="eurosat",
    images="2750",
    split_file="split_zhou_EuroSAT.json",
    read=partial(split_class_folders, images="2750", names=NAMES),
    sizes=Sizes(train=13500, val=5400, test=8100, classes=10),
    templates=("a centered satellite photo of {}.",),
    negative_templates=("a centered satellite photo of no {}.",),
    descriptions="eurosat",
    sources=(
        coop_split(
            "EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", 3006492,
            "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
        ),
        Source(
            # torchvision; the checksum is also that of the original at madm.dfki.de, which is gone; the size is tfds's
            "EuroSAT.zip",
            ("https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
             "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",),
            94280567, "md5:c8fa014336c82ac7804f0398fcb19387", same("2750"),
            otherwise=Source(
                # The creators' second version; its checksum is in several public repositories, its size in one
                "EuroSAT_RGB.zip", ("https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",), 94658721,
                "md5:f46e308c4d50d4bf32fedad2d3d62f3b", (Member("EuroSAT_RGB", "2750"),),
                otherwise=promptkd_mirror("eurosat.zip", "2750", "split_zhou_EuroSAT.json"),
            ),
        ),
    ),
)  # fmt: skip
