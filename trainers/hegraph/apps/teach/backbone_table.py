"""Comparison of backbones on the labelled images of a session, and its table on the page."""

from pathlib import Path
from typing import Any

import torch

from ...datasets.base import check_classes
from ...datasets.images import open_image
from ...estimator.model_selection.backbones import (
    TIMED_IMAGES,
    BackboneResult,
    Encoded,
    compare_candidates,
    reason_against,
    recommend,
)
from ...estimator.model_selection.candidates import Candidate, read_candidates
from ...features.backbones.identity import AUTO
from ...features.backbones.loading import load_backbone
from ..demo.answer import template
from .encoders import Encoder
from .folds import folds_of_pictures
from .session import Session

MACROS: Any = template(Path(__file__).parent / "backbones.html").module


def compare_backbones(session: Session, offline: bool) -> list[BackboneResult]:
    """Compare the current backbone and the listed candidates on the labelled images, as in `compare_candidates`.

    Args:
        session: Session of a project.
        offline: Whether to skip candidates whose weights are not on this machine.

    Raises:
        UserError: If the project has fewer than two classes with images.
    """
    contents = session.project.read()
    names = sorted(name for name, pictures in contents.classes.items() if pictures)
    check_classes(len(names))
    own = Candidate(name=session.name, tag=session.origin.backbone.pretrained)
    listed = [candidate for candidate in read_candidates() if str(candidate) != str(own)]
    labelled = [picture for name in names for picture in contents.classes[name]]

    def encode(candidate: Candidate) -> Encoded:
        other = session
        if candidate != own:
            backbone = load_backbone(candidate.name, candidate.tag, str(session.backbone.device), AUTO)
            choices = session.uses_names, session.group_pattern
            other = Session(session.project, backbone, candidate.name, candidate.tag, *choices)
        images, pictures = other.encoded_support_set(names, contents, labelled)
        sample = [open_image(session.project.read_bytes(picture)) for picture in pictures[:TIMED_IMAGES]]
        text = torch.zeros(len(names), other.backbone.width) if images.positive is None else images.positive
        folds = folds_of_pictures(pictures, images.labels, images.groups)
        return Encoded(other.backbone, images.features[0], images.labels, text, sample, images.groups, folds)

    return compare_candidates([own, *listed], encode, offline)


def table_html(results: list[BackboneResult], session: Session) -> str:
    """Format results as a table with a button for each usable backbone, and with advice if there is a choice."""
    rows = [(result, Encoder.of(result.candidate.name, result.candidate.tag)) for result in results]
    doubt = reason_against(results)
    recommended, difference = (None, None) if doubt else recommend(results)
    current = str(Candidate(name=session.name, tag=session.origin.backbone.pretrained))
    return str(MACROS.table(rows, recommended, difference, current, doubt))
