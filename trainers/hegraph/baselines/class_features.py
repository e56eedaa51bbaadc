"""Methods that classify by the cosine with one feature per class: zero-shot CLIP and methods that train this feature.

TaskRes, CLAP and GraphAdapter train an offset of the text features `t_k`, at the norm of the text encoder's output: the
longer a feature, the less a step turns it (for banks without these norms, see `features/bank.py`). CLIP-Adapter trains
an adapter on the image features, and CoOp the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank, text_with_norm
from ..method.cache import text_logits
from ..method.graph import sum_by_class
from ..utils.errors import UserError
from . import base
from .base import FittedMethod, Method, NoOptions
from .options import BottleneckOptions, ClassifierOptions, SgdOptions, by_dataset, by_shots, option
from .trained import Trainable, TrainedClassifier, bottleneck

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

INIT_STD = 0.02  # standard deviation of CoOp's initial context
PLACEHOLDER = "X"  # word that the tokenizer encodes as one token
ADAM_DECAY = "weight decay of Adam, added to the gradient (unlike AdamW's)"


@dataclass(frozen=True)
class CoOpTraining(SgdOptions):
    """Training of CoOp and CLIP-Adapter."""

    learning_rate: float = option(2e-3, "LR", "learning rate of SGD", least=0)
    epochs: int = by_shots({1: 50, 2: 100, 8: 200}, "EPOCHS", "number of training epochs", least=1)
    batch_size: int = option(32, "BATCH_SIZE", "number of images per step", least=1)


class ZeroShot(Method[NoOptions | None]):
    """Zero-shot CLIP: compares images with the text features of the class prompts.

    Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning
    Transferable Visual Models From Natural Language Supervision. ICML 2021.

        z = tau * cos(f, t_k)

    Differences from the original: the prompts are those of the bank.
    """

    transfers: ClassVar[bool] = True

    def fit(self, bank: FeatureBank, options: NoOptions | None, seed: int, backbone: object = None) -> FittedMethod:
        classifier = base.cosine_classifier(bank.text_positive, bank.logit_scale)
        return FittedMethod(zero_shot(bank), transfer=base.zero_shot_transfer, classifier=classifier)


def zero_shot(bank: FeatureBank) -> Callable[[Tensor], Tensor]:
    """Return the function from image features `[B, d]` to zero-shot logits `[B, K]`."""
    return partial(text_logits, class_features=bank.text_positive, logit_scale=bank.logit_scale)


@dataclass(frozen=True)
class TaskResOptions(ClassifierOptions):
    """Options of `TaskRes`."""

    alpha: float = by_dataset(0.5, "ALPHA", "weight of the residual", {"OxfordFlowers": 1.0}, least=0)
    learning_rate: float = by_dataset(2e-3, "LR", "learning rate of Adam", {"ImageNet": 2e-4}, least=0)
    epochs: int = by_shots({1: 100, 8: 200}, "EPOCHS", "number of training epochs", least=1)
    weight_decay: float = option(5e-4, "WEIGHT_DECAY", ADAM_DECAY, least=0)


class TaskRes(TrainedClassifier[TaskResOptions]):
    """TaskRes: trains a residual `x_k`, initially 0, that is added to the text feature of each class.

    Yu, Lu, Jin, Chen, Wang: Task Residual for Tuning Vision-Language Models. CVPR 2023.

        z = tau * cos(f, t_k + alpha * x_k)

    Differences from the original: there is no enhanced base (text features that are trained beforehand).
    """

    options: ClassVar[type] = TaskResOptions

    def build(self, bank: FeatureBank, options: TaskResOptions, seed: int, backbone: object) -> Trainable:
        text = text_with_norm(bank)
        residual = torch.zeros_like(text).requires_grad_()
        return Trainable([residual], lambda: text + options.alpha * residual)


@dataclass(frozen=True)
class CLAPOptions(SgdOptions):
    """Options of `CLAP`."""

    learning_rate: float = option(0.1, "LR", "learning rate of SGD", least=0)
    epochs: int = option(300, "EPOCHS", "number of training epochs", least=1)
    weight_decay: float = option(0.0, "WEIGHT_DECAY", "weight decay of SGD", least=0)


class CLAP(TrainedClassifier[CLAPOptions]):
    """CLAP, class-adaptive linear probing: trains a prototype `w_k` with a penalty on its distance to the text feature.

    Silva-Rodriguez, Hajimiri, Ben Ayed, Dolz: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models.
    CVPR 2024.

        z = tau * cos(f, w_k)
        minimise cross-entropy + mean over k of lambda_k * |w_k - t_k|^2
        lambda_k = mean over the images of class k of the probability that zero-shot CLIP gives to k

    The prototypes start at the text features. As in the released code, training takes 300 epochs for any number of
    shots, and the last epoch counts.

    Differences from the original: it samples an epoch's batches from 20 encoded views of all images together, as many
    full batches as there are images for, but at least one. A class without images gets the mean multiplier of the other
    classes.
    """

    options: ClassVar[type] = CLAPOptions

    def build(self, bank: FeatureBank, options: CLAPOptions, seed: int, backbone: object) -> Trainable:
        text = text_with_norm(bank)
        multipliers = zero_shot_confidence(bank)
        prototypes = text.clone().requires_grad_()

        def penalty() -> Tensor:
            return (multipliers * (prototypes - text).square().sum(dim=1)).mean()

        return Trainable([prototypes], lambda: prototypes, penalty=penalty)


def zero_shot_confidence(bank: FeatureBank) -> Tensor:
    """Return CLAP's multipliers `lambda_k`: mean zero-shot probability of a class on its own images, shape `[K]`."""
    num_classes = len(bank.text_positive)
    probabilities = text_logits(bank.train_features, bank.text_positive, bank.logit_scale).softmax(dim=-1)  # [V, N, K]
    confidences = probabilities.mean(dim=0).gather(1, bank.train_labels[:, None])[:, 0]  # of the true class, [N]
    counts = bank.train_labels.bincount(minlength=num_classes)
    means = sum_by_class(confidences, bank.train_labels, num_classes) / counts
    return torch.where(counts > 0, means, means[counts > 0].mean())


@dataclass(frozen=True)
class CLIPAdapterOptions(CoOpTraining, BottleneckOptions):
    """Options of `CLIPAdapter`."""


class CLIPAdapter(TrainedClassifier[CLIPAdapterOptions]):
    """CLIP-Adapter: trains a bottleneck MLP without biases on the image features.

    Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao: CLIP-Adapter: Better Vision-Language Models with Feature Adapters.
    International Journal of Computer Vision, 2024 (arXiv 2110.04544).

        z = tau * cos(r * A(f) + (1 - r) * f, t_k)        A(f) = relu(W_2 relu(W_1 f))

    As in the released code, the ratio r is 0.2 for every data set, and the text has no adapter.

    Differences from the original: the paper also reports ratios that were selected for each data set by test accuracy.
    Its adapter takes features of width 1,024 only. The released training is CoOp's on ImageNet; here it is CoOp's on
    all data sets. The bank's features have unit norm, which makes no difference: A(c f) = c A(f).
    """

    options: ClassVar[type] = CLIPAdapterOptions
    not_saved: ClassVar[str] = "its adapter changes the feature of the image to classify"
    transfers: ClassVar[bool] = True

    def build(self, bank: FeatureBank, options: CLIPAdapterOptions, seed: int, backbone: object) -> Trainable:
        ratio = options.ratio
        text = bank.text_positive
        down, up = bottleneck(text.shape[1], options, seed)
        adapter = nn.Sequential(down, nn.ReLU(), up, nn.ReLU()).to(text.device)

        def adapted(features: Tensor) -> Tensor:
            return F.normalize(ratio * adapter(features) + (1 - ratio) * features, dim=-1)

        return Trainable([*adapter.parameters()], lambda: text, adapted, transfer=lambda other: other.text_positive)


@dataclass(frozen=True)
class CoOpOptions(CoOpTraining):
    """Options of `CoOp`."""

    num_context: int = option(16, "N_CTX", "number of vectors in the context", least=1)


class CoOp(TrainedClassifier[CoOpOptions]):
    """CoOp, context optimisation: trains the first token embeddings of the prompt in place of words.

    Zhou, Yang, Loy, Liu: Learning to Prompt for Vision-Language Models. International Journal of Computer Vision, 2022.

        z = tau * cos(f, T([v_1] ... [v_M] [class name k] .))

    All classes share the context vectors v, which start normally distributed and are trained through CLIP's frozen text
    encoder T. As in the released code, M is 16, training takes 50 to 200 epochs by shots (on ImageNet 50; set EPOCHS
    [[1, 50]] there), and the last epoch counts.

    Differences from the original: there are no class-specific contexts and no contexts that start from words, and the
    class name is always at the end.
    """

    options: ClassVar[type] = CoOpOptions
    needs_backbone: ClassVar[bool] = True  # every step runs the text encoder
    trainer_of_coop: ClassVar[bool] = True
    transfers: ClassVar[bool] = True

    def build(self, bank: FeatureBank, options: CoOpOptions, seed: int, backbone: "Backbone | None") -> Trainable:
        if backbone is None:
            raise ValueError("CoOp trains through the text encoder, so `fit` needs the backbone")
        length = options.num_context
        generator = torch.Generator().manual_seed(seed)
        initial = INIT_STD * torch.randn(length, backbone.token_embedding.embedding_dim, generator=generator)
        context = initial.to(backbone.device).requires_grad_()

        def tokenize(bank: FeatureBank) -> Tensor:
            return backbone.context_tokens(placeholder_prompts(bank.classnames, length), length)

        def encode(tokens: Tensor) -> Tensor:
            return backbone.encode_with_context(tokens, context).to(bank.text_positive.device)

        tokens = tokenize(bank)
        return Trainable([context], lambda: encode(tokens), transfer=lambda other: encode(tokenize(other)))


def placeholder_prompts(classnames: Sequence[str], length: int) -> list[str]:
    """Return a prompt "X X ... X class name." for each class, with `length` placeholders X.

    Raises:
        UserError: If a prompt is longer than CLIP's context.
    """
    from ..features.backbones.clip_tokens import CONTEXT_LENGTH, count_tokens  # imports open_clip, which takes seconds

    prompts = [" ".join([PLACEHOLDER] * length + [f"{name.replace('_', ' ')}."]) for name in classnames]
    longest = max(prompts, key=count_tokens)
    if count_tokens(longest) > CONTEXT_LENGTH:
        name = longest.removeprefix(f"{PLACEHOLDER} " * length)
        needed = f"{length} tokens and the class name {name!r} take {count_tokens(longest)} tokens"
        raise UserError(f"N_CTX: {needed}, but CLIP reads {CONTEXT_LENGTH}; lower N_CTX")
    return prompts


@dataclass(frozen=True)
class GraphAdapterOptions(ClassifierOptions):
    """Options of `GraphAdapter`."""

    alpha: float = option(0.7, "ALPHA", "weight of the text graph; the image graph has 1 - ALPHA", least=0, most=1)
    beta: float = option(0.7, "BETA", "weight of the text feature; the graphs have 1 - BETA", least=0, most=1)
    groups: int = option(4, "GROUPS", "number of groups of classes, at most the number of classes", least=1)
    learning_rate: float = option(1e-3, "LR", "learning rate of Adam", least=0)
    weight_decay: float = option(5e-4, "WEIGHT_DECAY", ADAM_DECAY, least=0)


class GraphAdapter(TrainedClassifier[GraphAdapterOptions]):
    """GraphAdapter: trains one graph convolution over text features and one over mean image features of the classes.

    Li, Lian, Lu, Bai, Chen, Wang: GraphAdapter: Tuning Vision-Language Models With Dual Knowledge Graph. NeurIPS 2023.

        z = tau * cos(f, beta * t_k + (1 - beta) * mean over the groups g of g_k)
        g_k = alpha * GCN_text(t_k; the text features of g) + (1 - alpha) * GCN_image(t_k; the image means of g)
        GCN(t_k; n_1 ... n_m) = tanh(sum over j of A_0j * n_j W + b_k),  n_0 = t_k

    Class k is in group k mod 4. There is one fixed graph for each class and group: its nodes are the class and the m
    classes of the group, and A is `D^-1/2 (relu(cos) + I) D^-1/2` over these m + 1 nodes, where D holds the row sums. A
    matrix W for each of the two convolutions and a bias b for each class are trained. As in the released file, alpha is
    0.7, W starts uniform within 1 / sqrt(d), and b at 0. The schedule is the paper's.

    Differences from the original: the released file does not run (W is 512 wide whatever d is, K must be a multiple of
    4, all classes need equally many shots, an import is missing); here K, d and the shots of each class are free. The
    released file reads beta, the batch size and the warm-up from a configuration that was not released; here beta is
    0.7, and the others are TaskRes's. The image means are multiplied by the mean norm of the text features, because a
    bank holds unit-norm image features.
    """

    options: ClassVar[type] = GraphAdapterOptions

    def build(self, bank: FeatureBank, options: GraphAdapterOptions, seed: int, backbone: object) -> Trainable:
        text = text_with_norm(bank)
        num_classes, width = text.shape
        groups = min(options.groups, num_classes)
        sums = sum_by_class(bank.cache_keys(), bank.train_labels, num_classes)
        means = sums / bank.train_labels.bincount(minlength=num_classes).clamp_min(1)[:, None]
        images = means * text.norm(dim=-1).mean()
        text_nodes = aggregate_groups(text, text, groups)  # [groups, K, d]
        image_nodes = aggregate_groups(text, images, groups)
        generator = torch.Generator().manual_seed(seed)
        initial = (2 * torch.rand(2, width, width, generator=generator) - 1) / width**0.5
        weights = initial.to(text.device).requires_grad_()
        biases = text.new_zeros(2, num_classes, width).requires_grad_()

        def class_features() -> Tensor:
            text_weights, image_weights = weights
            text_bias, image_bias = biases
            text_graph = (text_nodes @ text_weights + text_bias).tanh()
            image_graph = (image_nodes @ image_weights + image_bias).tanh()
            graph = (options.alpha * text_graph + (1 - options.alpha) * image_graph).mean(dim=0)
            return options.beta * text + (1 - options.beta) * graph

        return Trainable([weights, biases], class_features)


def aggregate_groups(classes: Tensor, nodes: Tensor, groups: int) -> Tensor:
    """Sums `sum_j A_0j n_j` of the nodes of each group, for classes and nodes `[K, d]`; shape `[groups, K, d]`."""
    return torch.stack([aggregate(classes, nodes[group::groups]) for group in range(groups)])


def aggregate(classes: Tensor, nodes: Tensor) -> Tensor:
    """Aggregate graph nodes `[m, d]` at each of K classes `[K, d]`, its node 0: `sum_j A_0j n_j`, shape `[K, d]`."""
    unit = F.normalize(nodes, dim=-1)
    to_nodes = (F.normalize(classes, dim=-1) @ unit.t()).relu()  # [K, m]
    own_degree = 2 + to_nodes.sum(dim=1, keepdim=True)  # 2: the cosine of a node with itself is 1, and I adds 1
    degrees = to_nodes + (unit @ unit.t()).relu().sum(dim=1) + 1  # [K, m]
    return 2 / own_degree * classes + to_nodes / (own_degree * degrees).sqrt() @ nodes
