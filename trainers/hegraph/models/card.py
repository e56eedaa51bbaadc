"""Model card: README.md of a model folder, with the YAML header for the Hugging Face Hub.

Names from data are untrusted. They are escaped in the text, so that they are not HTML or Markdown, and reduced to
letters, digits and some punctuation in the header.
"""

import html
import re
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from ..features.backbones.identity import resolve_pretrained
from ..features.backbones.schema import BackboneConfig
from .saved import SavedModel

TEMPLATE = Path(__file__).with_name("card.jinja")
TAGS = ["few-shot-learning", "clip", "image-classification", "hegraph"]
LISTED_CLASSES = 50  # number of class names in a card
MARKUP = re.compile(r"^[-+]|[\\`*_{}\[\]#|~!:@=$^]")  # Markdown syntax


def model_card(model: SavedModel, base_model: str | None = None) -> str:
    """Card of a model, as Markdown with a YAML header; `base_model` is the backbone's name on the Hub, if known."""
    scores = model.scores
    method = escaped(model.method)
    without_cache = "the text classifier alone" if model.has_text else "without the cache"
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["escaped"] = escaped
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        header=card_header(model, base_model).to_yaml(),
        model=model,
        listed=LISTED_CLASSES,
        rows=[
            ("zero-shot CLIP", scores.map_zero_shot or scores.accuracy_zero_shot, scores.ece_zero_shot),
            (f"{method}(T), {without_cache}", scores.accuracy_text, None),
            (method, scores.map if scores.accuracy is None else scores.accuracy, scores.ece),
        ],
    )


def card_header(model: SavedModel, base_model: str | None = None) -> ModelCardData:
    """Metadata for the Hub."""
    dataset = plain(model.trained_on.title)
    scores = model.scores
    without_cache = "of the text classifier alone" if model.has_text else "without the cache"
    measured = (
        ("accuracy", "Accuracy", scores.accuracy),
        ("mean_average_precision", "mAP", scores.map),
        ("f1", "Macro F1", scores.macro_f1),
        ("accuracy", f"Accuracy {without_cache}", scores.accuracy_text),
        ("ece", "Expected calibration error", scores.ece),
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
        for kind, name, value in measured
        if value is not None
    ]
    return ModelCardData(
        license="mit",
        library_name="hegraph",
        pipeline_tag="image-classification",
        tags=TAGS,
        datasets=[dataset],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        base_model=base_model,
        model_name=f"{plain(model.method)} on {dataset}",
        eval_results=results or None,
    )


def escaped(text: str) -> str:
    """Escape untrusted text as Markdown on one line."""
    return MARKUP.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def plain(text: str) -> str:
    """Remove all characters from untrusted text that may have a meaning in YAML or on the Hub."""
    return " ".join(re.sub(r"[^\w .,()+/-]", " ", text).split()) or "unnamed"


def base_model_of(backbone: BackboneConfig) -> str | None:
    """Name of a backbone on the Hub; None for mini and for weights files.

    Imports open_clip, which takes a second and is not needed for runs from a feature bank.
    """
    if not backbone.model:
        return None
    from ..features.backbones.loading import hub_repository

    name = hub_repository(backbone.model, resolve_pretrained(backbone.model, backbone.pretrained))
    return name if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None
