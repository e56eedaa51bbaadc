"""Requests and answers of the server, from which FastAPI makes the OpenAPI schema."""

# No `from __future__ import annotations`: FastAPI reads the annotations.

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from ...estimator.labels import SUSPICIOUS
from ...models.saved import Scores, TrainedOn
from .settings import MAX_IMAGES

MAX_NUMBER = 10**9  # of classes or images that a request may ask for

Top = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
ClassName = Annotated[str, Field(max_length=4096)]


class Strict(BaseModel):
    """Part of a request, in which unknown keys and parameters are an error."""

    model_config = ConfigDict(extra="forbid")


# Requests


class EncodedImage(Strict):
    """Image of a JSON request."""

    data: str = Field(
        description="bytes of an image file, encoded in base64; may be a data URL", json_schema_extra={"format": "byte"}
    )
    name: str = Field("", max_length=4096, description="name that the answer repeats as `path`")


class ImagesRequest(Strict):
    """JSON request with images."""

    images: Annotated[list[EncodedImage], Field(min_length=1, max_length=MAX_IMAGES, description="images to classify")]


class LabelledImage(EncodedImage):
    """Image of a JSON request with its labels."""

    labels: list[ClassName] = Field(description="class names; exactly one for a model with one label per image")


class ExamplesRequest(Strict):
    """JSON request with labelled images and further classes."""

    images: Annotated[list[LabelledImage], Field(max_length=MAX_IMAGES, description="images to add")] = []
    classes: list[ClassName] = Field([], description="names of classes, which need no image")


class ImagesForm(Strict):
    """Form with image files."""

    files: list[UploadFile] = Field(min_length=1, max_length=MAX_IMAGES, description="image files")


class ExamplesForm(ImagesForm):
    """Form with image files that all have the same labels."""

    labels: list[ClassName] = Field(min_length=1, description="class names, which all files of the form have")


class PredictQuery(Strict):
    """Query of a request for predictions."""

    top: Top = Field(5, description="number of classes of an image, for a model with one label per image")
    open_set: float | None = Field(None, gt=0, lt=1, description="rate of known images to accept, such as 0.95")
    coverage: float | None = Field(None, gt=0, lt=1, description="coverage of prediction sets, such as 0.9")


class SuggestQuery(Strict):
    """Query of a request for the images to label next."""

    n: Top = Field(20, description="number of images to select")
    top: Top = Field(3, description="number of classes of an image")


class IssuesQuery(Strict):
    """Query of a request for suspicious labels."""

    above: float = Field(SUSPICIOUS, allow_inf_nan=False, description="lowest score to list")


class RemoveQuery(Strict):
    """Query of a request that removes images and classes."""

    ids: list[str] = Field([], alias="id", description="ids of images")
    classes: list[str] = Field([], alias="class", description="names of classes")


# Answers


class ErrorAnswer(BaseModel):
    """Answer to a request that failed."""

    error: str = Field(description="reason in one line")


class HealthAnswer(BaseModel):
    """State of the server."""

    status: Literal["ok"] = Field(default="ok", description="the server answers")


class ClassProbability(BaseModel):
    """Class of an image with its probability."""

    name: str = Field(alias="class", description="name of the class")
    probability: float = Field(ge=0, le=1, description="calibrated probability of the class")


class PredictedImage(BaseModel):
    """Prediction of an image."""

    path: str = Field(description="name of the image in the request")
    top: list[ClassProbability] = Field(description="the most probable classes first; empty with an error")
    error: str | None = Field(description="reason why there is no prediction")


class RejectableImage(PredictedImage):
    """Prediction of an image with open-set rejection and a prediction set."""

    none_of_these: bool | None = Field(
        None, description="whether the image shows no known class; only with `open_set`, and null with an error"
    )
    classes: list[str] | None = Field(
        None, description="prediction set, likeliest class first; only with `coverage`, and null with an error"
    )


class PredictAnswer(BaseModel):
    """Predictions in the order of the images."""

    predictions: list[RejectableImage] = Field(description="one prediction per image")


class SuggestAnswer(BaseModel):
    """Predictions of the images to label next, the most useful one first. Unreadable images follow at the end."""

    suggestions: list[PredictedImage] = Field(description="one prediction per selected image")


class ModelAnswer(BaseModel):
    """Description of the model."""

    method: str = Field(description="name of the method")
    variant: str = Field(description='variant of HeGraphAdapter; "" for another method')
    trained_on: TrainedOn = Field(description="data, configuration and software of the training")
    scores: Scores = Field(description="scores on the test images of the training")
    images: list[int] | None = Field(description="number of labelled images of each class, if known")
    classes: list[str] = Field(description="names of the classes")
    several_labels: bool = Field(description="whether an image may have several labels")
    backbone: str = Field(description="image encoder")
    precision: str = Field(description="number format in which the server encodes images")
    version: str = Field(description="version of HeGraphAdapter")


class Example(BaseModel):
    """Labelled image of the model."""

    id: str = Field(description="hash of the pixels, 16 hex digits")
    labels: list[str] = Field(description="class names of the image")


class ExamplesAnswer(BaseModel):
    """Labelled images of the model."""

    examples: list[Example] = Field(description="one entry per image")


class AddedAnswer(BaseModel):
    """Ids of the images of a request, in their order."""

    ids: list[str] = Field(description="one id per image")


class RemovedAnswer(BaseModel):
    """Ids of removed images, and names of removed classes."""

    removed: list[str] = Field(description="ids and names, as in the request")


class SuspiciousLabel(BaseModel):
    """Label that is likely wrong."""

    id: str = Field(description="id of the image")
    label: str = Field(description="class name that the image has in the model")
    suggested: str = Field(description="a more probable class")
    score: float = Field(description="about the log odds of the other classes; above 0, the label is likely wrong")


class IssuesAnswer(BaseModel):
    """Labels that are likely wrong, the most suspicious one first."""

    issues: list[SuspiciousLabel] = Field(description="one entry per label")
