"""The model card: README.md of a model folder, with the YAML header that the Hugging Face Hub reads.

Names come from data: in the text they are escaped, so that none is HTML or Markdown, and in the header they lose all
but letters, digits and a few marks.
"""

from __future__ import annotations

import html
import re

from huggingface_hub import EvalResult, ModelCardData

from ..backbones.identity import resolve_pretrained
from .saved import Backbone, SavedModel

LIBRARY = "hegraph"
TAGS = ["few-shot-learning", "clip", "image-classification", LIBRARY]
LISTED_CLASSES = 50  # a card names so many classes and counts the others
MARKUP = re.compile(r"^[-+]|[\\`*_{}\[\]#|~!:@=$^]")  # what Markdown may take for its own
NUMBER = re.compile(r"^(\d+)([.)])")  # of a list

CARD = """\
---
{header}
---

# {method} on {dataset}

An adapter of the frozen CLIP {backbone} to {classes} classes. It was trained on {shots} of each class ({num_train} in
all, seed {seed}).{unlabelled}

{scores}

## Use

```bash
hegraph predict MODEL_FOLDER IMAGE{flags}
```

```python
from hegraph import HeGraphClassifier

classifier = HeGraphClassifier.from_pretrained("MODEL_FOLDER"{arguments})
classifier.predict(["image.jpg"])
```
{not_named}
## Classes

{names}

## Files

`config.json` holds classes, prompts, backbone and provenance; `model.safetensors` the class weights and the cache.
Reading them runs nothing.
"""
NOT_NAMED = """
The model was trained from a bank of features that does not say how open_clip calls their backbone.
Put its name in place of NAME and its weights, a tag or a file, in place of TAG.
"""


def model_card(model: SavedModel) -> str:
    """The card of a model, as Markdown with a YAML header."""
    trained, named = model.trained_on, bool(model.backbone.model)
    names = [f"- {escaped(name)}" for name in model.classnames[:LISTED_CLASSES]]
    if len(model.classnames) > LISTED_CLASSES:
        names.append(f"- and {len(model.classnames) - LISTED_CLASSES} more, in `config.json`")
    return CARD.format(
        header=card_header(model).to_yaml(),
        method=escaped(model.method),
        dataset=escaped(trained.dataset),
        backbone=escaped(model.backbone.title),
        classes=len(model.classnames),
        shots={-1: "all images", 1: "1 image"}.get(trained.shots, f"{trained.shots} images"),
        num_train=trained.num_train,
        seed=trained.seed,
        unlabelled=f" Then it heard {model.unlabelled} images without labels." if model.unlabelled else "",
        scores=_scores(model),
        flags="" if named else " --backbone NAME --pretrained TAG",
        arguments="" if named else ', backbone="NAME", pretrained="TAG"',
        not_named="" if named else NOT_NAMED,
        names="\n".join(names),
    )


def card_header(model: SavedModel) -> ModelCardData:
    """What the Hub reads."""
    dataset, measured = plain(model.trained_on.dataset), model.scores
    metrics = (
        ("accuracy", "Accuracy", measured.accuracy),
        ("f1", "Macro F1", measured.macro_f1),
        ("accuracy", "Accuracy of the text classifier alone", measured.accuracy_text),
        ("ece", "Expected calibration error", measured.ece),
    )
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(value / 100, 4),
        )
        for kind, name, value in metrics
        if value is not None
    ]
    return ModelCardData(
        license="mit",
        library_name=LIBRARY,
        pipeline_tag="image-classification",
        tags=TAGS,
        datasets=[dataset],
        metrics=["accuracy", "f1"],
        base_model=_base_model(model.backbone),
        model_name=f"{plain(model.method)} on {dataset}",
        eval_results=results or None,
    )


def escaped(text: str) -> str:
    """Text of a stranger's as Markdown that shows it, in one line, and does nothing else."""
    line = html.escape(" ".join(text.split()), quote=False)
    return NUMBER.sub(r"\1\\\2", MARKUP.sub(lambda found: f"\\{found[0]}", line))


def plain(text: str) -> str:
    """Text of a stranger's without whatever some reader of the header may take for more than text."""
    return " ".join(re.sub(r"[^\w .,()+/-]", " ", text).split()) or "unnamed"


def _base_model(backbone: Backbone) -> str | None:
    """The Hub's name of the backbone; None where the Hub has none, as for mini or weights in a file."""
    if not backbone.model:
        return None
    from ..backbones.loading import hub_repository  # imports open_clip

    found = hub_repository(backbone.model, resolve_pretrained(backbone.model, backbone.pretrained))
    return found if found and re.fullmatch(r"[\w.-]+/[\w.-]+", found) else None


def _scores(model: SavedModel) -> str:
    scores, method = model.scores, escaped(model.method)
    if scores.accuracy is None:
        return "There were no test images, so no score is known."
    rows = (
        ("zero-shot CLIP", scores.accuracy_zero_shot, scores.ece_zero_shot),
        (f"{method}(T), the text classifier alone", scores.accuracy_text, None),
        (method, scores.accuracy, scores.ece),
    )
    lines = [
        f"| {name} | {accuracy:.2f} | {'' if ece is None else f'{ece:.2f}'} |"
        for name, accuracy, ece in rows
        if accuracy is not None
    ]
    about = (
        f"On {scores.num_test} test images, in %. ECE is the expected calibration error (15 bins) of probabilities, "
        f"the softmax of logits divided by the temperature {model.temperature:.3f}; zero-shot CLIP's are as it comes."
    )
    return "\n".join([about, "", "| | accuracy | ECE |", "|---|---:|---:|", *lines])
