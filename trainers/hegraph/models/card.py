"""The model card: README.md of a model folder, with the YAML header that the Hugging Face Hub reads."""

from __future__ import annotations

from typing import Any

import yaml

from ..backbones.identity import resolve_pretrained
from .saved import SavedModel
from .schema import Backbone

LIBRARY = "hegraph"
TAGS = ("few-shot-learning", "clip", "image-classification", LIBRARY)
LISTED_CLASSES = 50  # a card names so many classes and counts the others

USE = """\
## Use

```bash
hegraph predict MODEL_FOLDER IMAGE{flags}
```

```python
from hegraph import HeGraphClassifier

classifier = HeGraphClassifier.from_pretrained("MODEL_FOLDER"{arguments})
classifier.predict(["image.jpg"])
```
"""
NOT_NAMED = """
The model was trained from a bank of features that does not say how open_clip calls their backbone.
Put its name in place of NAME and its weights, a tag or a file, in place of TAG.
"""
FILES = """\
## Files

`config.json` holds classes, prompts, backbone and provenance; `model.safetensors` the class weights and the cache.
Reading them runs nothing.
"""


def model_card(model: SavedModel) -> str:
    """The card of a model, as Markdown with a YAML header."""
    header = yaml.safe_dump(card_header(model), sort_keys=False, allow_unicode=True)
    trained = model.trained_on
    shots = {-1: "all images", 1: "1 image"}.get(trained.shots, f"{trained.shots} images")
    about = f"{shots} of each class ({trained.num_train} in all, seed {trained.seed})"
    parts = [
        f"---\n{header}---\n",
        f"# {model.method} on {trained.dataset}\n",
        f"An adapter of the frozen CLIP `{model.backbone.title}` to {len(model.classnames)} classes. It was trained on "
        f"{about}.\n",
        _scores(model),
        _use(model.backbone),
        _classes(model),
        FILES,
    ]
    return "\n".join(parts)


def card_header(model: SavedModel) -> dict[str, Any]:
    """The YAML header, as a plain dict."""
    dataset = model.trained_on.dataset
    header: dict[str, Any] = {
        "license": "mit",
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification",
        "tags": list(TAGS),
        "datasets": [dataset],
        "metrics": ["accuracy", "f1"],
    }
    if (base_model := _base_model(model.backbone)) is not None:
        header["base_model"] = base_model
    measured = [
        {"type": kind, "name": name, "value": round(value / 100, 4)}
        for kind, name, value in (
            ("accuracy", "Accuracy", model.scores.accuracy),
            ("f1", "Macro F1", model.scores.macro_f1),
            ("accuracy", "Accuracy of the text classifier alone", model.scores.accuracy_text),
            ("ece", "Expected calibration error", model.scores.ece),
        )
        if value is not None
    ]
    if measured:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": dataset, "name": dataset, "split": "test"},
            "metrics": measured,
        }
        header["model-index"] = [{"name": f"{model.method} on {dataset}", "results": [result]}]
    return header


def _base_model(backbone: Backbone) -> str | None:
    """The Hub's name of the backbone; None where the Hub has none, as for mini or weights in a file."""
    if not backbone.model:
        return None
    from ..backbones.sources import hub_repository  # imports open_clip

    return hub_repository(backbone.model, resolve_pretrained(backbone.model, backbone.pretrained))


def _use(backbone: Backbone) -> str:
    if backbone.model:
        return USE.format(flags="", arguments="")
    return (
        USE.format(flags=" --backbone NAME --pretrained TAG", arguments=', backbone="NAME", pretrained="TAG"')
        + NOT_NAMED
    )


def _scores(model: SavedModel) -> str:
    scores = model.scores
    if scores.accuracy is None:
        return "There were no test images, so no score is known.\n"
    rows = [
        ("zero-shot CLIP", scores.accuracy_zero_shot, scores.ece_zero_shot),
        (f"{model.method}(T), the text classifier alone", scores.accuracy_text, None),
        (model.method, scores.accuracy, scores.ece),
    ]
    lines = [
        f"| {name} | {accuracy:.2f} | {'' if ece is None else f'{ece:.2f}'} |"
        for name, accuracy, ece in rows
        if accuracy is not None
    ]
    about = (
        f"On {scores.num_test} test images, in %. ECE is the expected calibration error (15 bins) of probabilities, "
        f"the softmax of logits divided by the temperature {model.temperature:.3f}; zero-shot CLIP's are as it comes."
    )
    return "\n".join([about, "", "| | accuracy | ECE |", "|---|---:|---:|", *lines, ""])


def _classes(model: SavedModel) -> str:
    names = [name.replace("\n", " ") for name in model.classnames]
    more = [f"- and {len(names) - LISTED_CLASSES} more, in `config.json`"] if len(names) > LISTED_CLASSES else []
    return "\n".join(["## Classes", "", *(f"- {name}" for name in names[:LISTED_CLASSES]), *more, ""])
