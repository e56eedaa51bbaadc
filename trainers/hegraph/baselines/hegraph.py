"""HeGraphAdapter as a `Method`: a run fits, calibrates, tests and saves it by the same code as every other method.

`method/` has the model and its training.

Shapes: N training images, K classes, d feature width.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..config import OPTIONS, Config
from ..config_files import candidates
from ..features.bank import FeatureBank
from ..method.head.multilabel import MultiLabelHead
from ..method.model import HeGraphModel, TransferableAdapter, build_model
from ..method.training.batches import TrainingData
from ..method.training.choice import val_accuracy, val_images
from ..method.training.loop import AdapterTraining, Checkpoints, TrainingSummary, train_to_end
from ..method.training.memory import free_bytes, log_large, training_bytes
from ..method.training.options import TrainingOptions
from ..utils.seeds import set_random_seed
from .base import FittedMethod, Method, groups_to_leave_out

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

logger = logging.getLogger(__name__)

RESTART_RATIO = 1 / 3  # fraction of the steps of a training that starts from earlier parameters


class HeGraphAdapter(Method[Config]):
    """HeGraphAdapter, whose options are those of the whole configuration.

    "HeGraphAdapter: Tuning Multi-Modal Vision-Language Models with Heterogeneous Graph Adapter", arXiv:2410.07854.
    """

    needs_text: ClassVar[bool] = False
    transfers: ClassVar[bool] = True
    needs_batches: ClassVar[bool] = True
    selects_on_val: ClassVar[bool] = True
    stores_support_set: ClassVar[bool] = True

    def options_for(self, cfg: Config, bank: FeatureBank) -> Config:
        return cfg

    def stores_key(self, key: str) -> bool:
        return key in OPTIONS and OPTIONS[key].shapes_model

    def fit(
        self,
        bank: FeatureBank,
        options: Config,
        seed: int,
        backbone: "Backbone | None" = None,
        *,
        data: TrainingData | None = None,
        checkpoints: Checkpoints | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> FittedMethod:
        """Fit the variant of the configuration or, with several labels per image, the head for them.

        Args:
            bank: As in `Method.fit`.
            options: The configuration.
            seed: As in `Method.fit`.
            backbone: Unused.
            data: Training batches of the bank; None only with several labels per image.
            checkpoints: Checkpoints to resume from and to write; None writes none.
            start: Parameters of an earlier training of the same variant on similar images, which shorten the training.

        Raises:
            UserError: If a class has no training image, the loss is not finite, or the checkpoint is of another run.
        """
        if bank.multilabel:
            return fit_multilabel(bank)
        assert data is not None
        if options.run.select_on == "val":
            return select_on_val(bank, options, seed, data, checkpoints)
        model = new_model(bank, options, seed)
        training = options.training
        if model.layers is not None and start and start.keys() == model.layers.state_dict().keys():
            model.layers.load_state_dict(start)
            training = shortened(training)
        return fitted_adapter(model, train(model, data, training, checkpoints))


def fit_multilabel(bank: FeatureBank) -> FittedMethod:
    """Fit the head for several labels per image, the only part of HeGraphAdapter that supports them."""
    text = bank.text_positive if bank.has_text else None
    head = MultiLabelHead.fit(bank.cache_keys(), bank.train_labels, text, groups_to_leave_out(bank))
    return FittedMethod(
        head.classifier.logits,
        classifier=head.classifier,
        variant="training_free",
        thresholds=head.log_odds(head.thresholds).float(),
    )


def new_model(bank: FeatureBank, cfg: Config, seed: int) -> HeGraphModel:
    """Return the untrained adapter of a bank; warn if memory is short.

    Raises:
        UserError: If a class has no training image.
    """
    set_random_seed(seed)  # encoding uses the random generators, reading encoded features does not
    views, num_images, width = bank.train_features.shape
    batch = min(cfg.data.batch_size, num_images)
    parts = training_bytes(len(bank.classnames), num_images, width, views, batch, cfg.model.needs_closed_form)
    log_large(parts, free_bytes(str(bank.train_features.device)))
    return build_model(bank, cfg.model)


def shortened(options: TrainingOptions) -> TrainingOptions:
    """Return the options of a training that starts from earlier parameters."""
    epochs = math.ceil(RESTART_RATIO * options.epochs)
    min_steps = math.ceil(RESTART_RATIO * options.min_steps)
    return replace(options, epochs=epochs, min_steps=min_steps)


def train(
    model: HeGraphModel, data: TrainingData, options: TrainingOptions, checkpoints: Checkpoints | None
) -> TrainingSummary:
    """Train a model in place, from its checkpoint if there is one; a training-free variant is not trained.

    Raises:
        UserError: If the loss is not finite, or the checkpoint does not fit the model.
    """
    if model.layers is None:
        return TrainingSummary()
    summary = train_to_end(AdapterTraining.start(model, data, options, checkpoints))
    if checkpoints is not None:
        checkpoints.save_adapter(model)
    return summary


def select_on_val(
    bank: FeatureBank, cfg: Config, seed: int, data: TrainingData, checkpoints: Checkpoints | None
) -> FittedMethod:
    """Train every candidate of SELECT; save and return the best on val, with the time of the whole search.

    The first of equally good candidates wins. Candidates with the same training options share one training: ALPHA_C,
    for example, only weighs predictions. `check_training` ensures that there are val images and candidates.
    """
    keys = [key for key, _ in cfg.run.select]
    trained: dict[str, tuple[HeGraphModel, TrainingSummary]] = {}
    table: list[list] = []
    best_on_val = -1.0
    for values, candidate in candidates(cfg):
        model = new_model(bank, candidate, seed)
        options = repr((candidate.model.in_training, candidate.training))
        if options in trained:
            model.layers = trained[options][0].layers
        else:
            trained[options] = model, train(model, data, candidate.training, None)
        on_val = val_accuracy(model.fold().logits, bank)
        table.append([list(values), round(on_val, 4)])
        logger.info("%s: %.2f on val", ", ".join(f"{k} {v}" for k, v in zip(keys, values)), on_val)
        if on_val > best_on_val:
            best_on_val = on_val
            chosen = values
            best = model
            summary = trained[options][1]
    if checkpoints is not None:
        checkpoints.save_adapter(best)
    seconds = sum(training.seconds for _, training in trained.values())
    selected = {"keys": keys, "value": list(chosen), "candidates": table, "num_val": len(val_images(bank)[1])}
    return fitted_adapter(best, replace(summary, seconds=seconds), selected)


def fitted_adapter(
    model: HeGraphModel, training: TrainingSummary | None = None, selected: dict | None = None
) -> FittedMethod:
    """Return a trained adapter as a fitted method.

    Args:
        model: The adapter.
        training: Its epochs, steps and time; None if it was not trained.
        selected: Entry of the record about values that were selected on val.
    """
    training = training or TrainingSummary()
    adapted = model.pass_messages_at_test()
    folded = model.fold(adapted)
    text_nodes = None
    state: dict[str, Tensor] = {}
    if model.layers is not None:
        text_nodes = (model.x_positive, F.normalize(adapted.positive, dim=-1))
        state = {name: tensor.detach().cpu() for name, tensor in model.layers.state_dict().items()}
    class_nodes = None
    if model.closed_form is not None and model.options.has_closed_form:
        class_nodes = model.closed_form.to_text.nodes
    return FittedMethod(
        folded.logits,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=training.epochs,
        steps=training.steps,
        seconds=training.seconds,
        selected=selected or {},
        transfer=TransferableAdapter.of(model),
        classifier=folded,
        variant=model.options.variant,
        text_nodes=text_nodes,
        state=state,
        class_nodes=class_nodes,
        trusted=model.trusted,
    )
