"""scikit-learn's handwritten digits, which need no download: whole, as other domains, and in two halves."""

from __future__ import annotations

from functools import partial

from ..digits import DOMAINS, HALVES, load_digits_dataset
from ..entry import LoaderEntry

TEMPLATES = ('a photo of the number: "{}".', "a photo of a handwritten {}.", "a photo of a {}.")
NEGATIVE_TEMPLATES = ('a photo of the number: no "{}".', "a photo of no handwritten {}.", "a photo of no {}.")

ENTRIES = (
    LoaderEntry(
        name="Digits",
        load=load_digits_dataset,
        templates=TEMPLATES,
        negative_templates=NEGATIVE_TEMPLATES,
        descriptions="digits",
        # mini, the backbone made for the digits, has read captions only: on their val rows, descriptions cost it 1.5
        # points (71.5% with templates, 70.0% with both)
        describe_by_default=False,
    ),
    # They have test images only
    *(LoaderEntry(name=name, load=partial(load_digits_dataset, name=name), train_on="Digits") for name in DOMAINS),
    *(
        LoaderEntry(
            name=name,
            load=partial(load_digits_dataset, name=name),
            templates=TEMPLATES,
            negative_templates=NEGATIVE_TEMPLATES,
        )
        for name in HALVES
    ),
)
