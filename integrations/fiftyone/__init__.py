"""Plugin of FiftyOne: train on the labelled samples of a dataset, predict all, and order labels and samples.

FiftyOne imports this file, and `fiftyone.yml` names its operator. The plugin needs the package hegraph-adapter in the
environment of FiftyOne. docs/guides/fiftyone.md is the guide.
"""

from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
from fiftyone import ViewField
from fiftyone.operators import types

PREDICTION, SCORE, RANK = "hegraph_prediction", "hegraph_label_score", "hegraph_label_next"
SUSPICIOUS, NEXT, UNCERTAIN = "hegraph suspicious labels", "hegraph label next", "hegraph least confident"
ABOVE = 2.0  # score from which a label is suspicious, as in `hegraph label check`


class TrainAndPredict(foo.Operator):
    """Operator *Train and predict*."""

    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="train_and_predict",
            label="HeGraph: train and predict",
            description="Train on the labelled samples; predict all, and find suspicious labels and samples to label",
            dynamic=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form of the operator."""
        inputs = types.Object()
        fields = label_fields(ctx.dataset)
        if not fields:
            warning = types.Warning(label="The dataset has no Classification field with the labels of some samples.")
            inputs.view("no_labels", warning)
            return types.Property(inputs)
        inputs.enum("labels", fields, default=fields[0], required=True, label="Field with the labels of some samples")
        backbone = "Image encoder: a model of open_clip, or mini"
        inputs.str("backbone", default="ViT-B-16", required=True, label=backbone)
        inputs.int("number", default=20, min=1, label="Number of samples to label next")
        return types.Property(inputs, view=types.View(label="Train and predict"))

    def execute(self, ctx: Any) -> dict[str, int]:
        """Write the fields and the saved views."""
        params = ctx.params
        result = train_and_predict(ctx.dataset, params["labels"], params["backbone"], params["number"])
        ctx.trigger("reload_dataset")
        return result

    def resolve_output(self, ctx: Any) -> types.Property:
        """The numbers that `execute` returns."""
        outputs = types.Object()
        outputs.int("labelled", label="Labelled samples, which trained the model")
        outputs.int("predicted", label="Samples with a prediction")
        outputs.int("suspicious", label=f"Suspicious labels (saved view {SUSPICIOUS!r})")
        return types.Property(outputs, view=types.View(label="Trained"))


def label_fields(dataset: fo.Dataset) -> list[str]:
    """Names of the fields with classifications, without the predictions of this plugin."""
    names = dataset.get_field_schema(embedded_doc_type=fo.Classification)
    return [name for name in names if name != PREDICTION]


def train_and_predict(dataset: fo.Dataset, labels_field: str, backbone: str, number: int) -> dict[str, int]:
    """Train on the labelled samples of a dataset, and write fields and saved views.

    Args:
        dataset: Dataset of images.
        labels_field: Field with the labels of some samples.
        backbone: Image encoder, an argument of `load_backbone`.
        number: Number of samples to label next.

    Returns:
        Numbers of labelled samples, of samples with a prediction, and of suspicious labels.

    Raises:
        ValueError: If fewer than two classes have labels, or an image is unreadable.
    """
    from hegraph import HeGraphClassifier, load_backbone  # takes seconds to import

    paths = dataset.values("filepath")
    labels = dataset.values(f"{labels_field}.label")
    labelled = [position for position, label in enumerate(labels) if label is not None]
    known = [labels[position] for position in labelled]
    if len(set(known)) < 2:
        raise ValueError(
            f"expected labels of at least two classes in {labels_field}, got {len(set(known))}; label more"
        )
    features = load_backbone(backbone).encode_images(paths)
    classifier = HeGraphClassifier(backbone, variant="training_free").fit(features[labelled], known)
    probabilities = classifier.predict_proba(features)
    predictions = [
        fo.Classification(label=str(classifier.classes_[row.argmax()]), confidence=float(row.max()))
        for row in probabilities
    ]
    scores: list[float | None] = [None] * len(paths)
    for issue in classifier.label_issues(features[labelled], known):
        scores[labelled[issue.index]] = float(issue.score)
    unlabelled = [position for position, label in enumerate(labels) if label is None]
    ranks: list[int | None] = [None] * len(paths)
    if unlabelled:
        for rank, index in enumerate(classifier.suggest(features[unlabelled], number), start=1):
            ranks[unlabelled[index]] = rank
    write(dataset, predictions, scores, ranks)
    suspicious = sum(score is not None and score > ABOVE for score in scores)
    return {"labelled": len(labelled), "predicted": len(paths), "suspicious": suspicious}


def write(
    dataset: fo.Dataset, predictions: list[fo.Classification], scores: list[float | None], ranks: list[int | None]
) -> None:
    """Replace the fields and the saved views of an earlier run."""
    for name, field, options in (
        (PREDICTION, fo.EmbeddedDocumentField, {"embedded_doc_type": fo.Classification}),
        (SCORE, fo.FloatField, {}),
        (RANK, fo.IntField, {}),
    ):
        if not dataset.has_sample_field(name):
            dataset.add_sample_field(name, field, **options)
    dataset.set_values(PREDICTION, predictions)
    dataset.set_values(SCORE, scores)
    dataset.set_values(RANK, ranks)
    views = {
        SUSPICIOUS: dataset.match(ViewField(SCORE) > ABOVE).sort_by(SCORE, reverse=True),
        NEXT: dataset.exists(RANK).sort_by(RANK),
        UNCERTAIN: dataset.exists(PREDICTION).sort_by(f"{PREDICTION}.confidence"),
    }
    for name, view in views.items():
        dataset.save_view(name, view, overwrite=True)


def register(plugin: Any) -> None:
    """Register the operator; FiftyOne calls this function."""
    plugin.register(TrainAndPredict)
