"""Methods that compare an image with one feature of each class: zero-shot CLIP, and those that train it.

TaskRes, CLAP and GraphAdapter move the text features `t_k`, which keep the norm that the text tower gives them, since a
step turns a longer feature by a smaller angle (where a bank does not hold the norms, see `features/bank.py`).
CLIP-Adapter moves the image's feature, and CoOp the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank, text_with_norm
from ..method.cache import text_logits
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method, Options, by_dataset, check_numbers, cosine_classifier, value_for_task
from .trained import Trainable, TrainedClassifier, bottleneck

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

DEVIATION = 0.02  # standard deviation of CoOp's context at its start
PLACEHOLDER = "X"  # a word of one token
WARM_UP: Defaults = {"WARMUP_EPOCHS": 1, "WARMUP_LR": 1e-5}
# CoOp's training, which CLIP-Adapter has as well
COOP_TRAINING: Defaults = {
    "LR": 2e-3,  # SGD's learning rate
    "EPOCHS": [[1, 50], [2, 100], [8, 200]],  # rows [from this many shots, epochs]
    "BATCH_SIZE": 32,  # images per step
    "MOMENTUM": 0.9,
    "WEIGHT_DECAY": 5e-4,
    **WARM_UP,
}


class ZeroShot(Method):
    """Zero-shot CLIP: compares images with the text features of the bank's prompts alone.

    Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning
    Transferable Visual Models From Natural Language Supervision. ICML 2021.

        z = tau * cos(f, t_k)

    Distance from the original: none, with the prompts that the bank was made of.
    """

    defaults: ClassVar[Defaults] = {}

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        def logits(features: Tensor, bank: FeatureBank = bank) -> Tensor:
            return text_logits(features, bank.text_positive, bank.logit_scale)

        return FittedMethod(
            logits,
            transfer=lambda other: logits(other.features_to_classify, other),
            classifier=cosine_classifier(bank.text_positive, bank.logit_scale),
            transfer_rule="zero-shot",
        )


class TaskRes(TrainedClassifier):
    """Task residual tuning: trains a residual `x_k` on the text feature of each class, from 0.

    Yu, Lu, Jin, Chen, Wang: Task Residual for Tuning Vision-Language Models. CVPR 2023.

        z = tau * cos(f, t_k + alpha * x_k)

    Distance from the original: its enhanced base, which is other text features, trained beforehand, is left out.
    """

    defaults: ClassVar[Defaults] = {
        "ALPHA": by_dataset(0.5, OxfordFlowers=1.0),  # weight of the residual
        "LR": by_dataset(2e-3, ImageNet=2e-4),  # Adam's learning rate
        "EPOCHS": [[1, 100], [8, 200]],  # rows [from this many shots, epochs]
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 5e-4,  # Adam's, which is added to the gradient (not decoupled, as in AdamW)
        **WARM_UP,
    }

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        alpha, text = value_for_task(options, "ALPHA", bank), text_with_norm(bank)
        residual = torch.zeros_like(text).requires_grad_()
        return Trainable([residual], lambda: text + alpha * residual)


class CLAP(TrainedClassifier):
    """Class-adaptive linear probing: trains a prototype `w_k`, which starts at the text, and a penalty holds it there.

    Silva-Rodriguez, Hajimiri, Ben Ayed, Dolz: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models.
    CVPR 2024.

        z = tau * cos(f, w_k)
        minimise cross-entropy + mean over k of lambda_k * |w_k - t_k|^2
        lambda_k = mean over the images of class k of the probability that zero-shot CLIP gives to k

    As in the released code, 300 epochs for any number of shots, of which the last counts.

    Distance from the original: it draws each epoch's batches, as many full ones as the images fill but at least one,
    from 20 encoded views of all images together. A class without images has the mean multiplier of the others.
    """

    defaults: ClassVar[Defaults] = {
        "LR": 0.1,  # SGD's learning rate
        "EPOCHS": 300,
        "BATCH_SIZE": 256,  # images per step
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0,
        **WARM_UP,
    }

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        text, multipliers = text_with_norm(bank), zero_shot_confidence(bank)
        prototypes = text.clone().requires_grad_()

        def penalty() -> Tensor:
            return (multipliers * (prototypes - text).square().sum(dim=1)).mean()

        return Trainable([prototypes], lambda: prototypes, penalty=penalty)


def zero_shot_confidence(bank: FeatureBank) -> Tensor:
    """CLAP's multipliers `lambda_k`, shape `[K]`."""
    views, num_classes = bank.train_features, len(bank.text_positive)
    probabilities = text_logits(views, bank.text_positive, bank.logit_scale).softmax(dim=-1)  # [V, N, K]
    own = probabilities.mean(dim=0).gather(1, bank.train_labels[:, None])[:, 0]  # [N]
    counts = bank.train_labels.bincount(minlength=num_classes)
    means = own.new_zeros(num_classes).index_add(0, bank.train_labels, own) / counts
    return torch.where(counts > 0, means, means[counts > 0].mean())


class CLIPAdapter(TrainedClassifier):
    """CLIP-Adapter: trains a bottleneck of a quarter of the width, without biases, on the image features.

    Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao: CLIP-Adapter: Better Vision-Language Models with Feature Adapters.
    International Journal of Computer Vision, 2024 (arXiv 2110.04544).

        z = tau * cos(r * A(f) + (1 - r) * f, t_k)        A(f) = relu(W_2 relu(W_1 f))

    As in the released code, the ratio r is 0.2 for every data set, and the text has no adapter.

    Distance from the original: the paper also reports ratios that were chosen for each data set by test accuracy. Its
    adapter is for features of 1,024 alone. The released training is CoOp's on ImageNet; it is CoOp's for all data sets
    here. That the bank's features are unit-norm changes nothing: A(c f) = c A(f).
    """

    defaults: ClassVar[Defaults] = {
        "RATIO": 0.2,  # share of the adapted features in the sum
        "REDUCTION": 4,  # width of the features divided by the width of the bottleneck
        **COOP_TRAINING,
    }
    not_saved: ClassVar[str] = "its adapter changes the feature of the image to classify"

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        ratio, text = options.RATIO, bank.text_positive
        down, up = bottleneck(text.shape[1], options, seed)
        adapter = nn.Sequential(down, nn.ReLU(), up, nn.ReLU()).to(text.device)

        def adapted(features: Tensor) -> Tensor:
            return F.normalize(ratio * adapter(features) + (1 - ratio) * features, dim=-1)

        return Trainable([*adapter.parameters()], lambda: text, adapted, transfer=lambda other: other.text_positive)


class CoOp(TrainedClassifier):
    """Context optimisation: trains the vectors that a prompt begins with, in place of its words.

    Zhou, Yang, Loy, Liu: Learning to Prompt for Vision-Language Models. International Journal of Computer Vision, 2022.

        z = tau * cos(f, T([v_1] ... [v_M] [class name k] .))

    The vectors v are the same for all classes, start normally distributed, and are trained through CLIP's text tower T,
    which is frozen. As in the released code: M = 16, and 50 to 200 epochs by shots (on ImageNet 50; set EPOCHS [[1,
    50]] there), of which the last counts.

    Distance from the original: contexts for each class or from words, and other places of the class name are left out.
    """

    defaults: ClassVar[Defaults] = {
        "N_CTX": 16,  # number of vectors in the context
        **COOP_TRAINING,
    }
    needs_backbone: ClassVar[bool] = True  # every step runs the text tower
    trainer_of_coop: ClassVar[bool] = True

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: Backbone | None) -> Trainable:
        if backbone is None:
            raise ValueError("CoOp trains through the text tower, so `fit` needs the backbone")
        check_numbers("N_CTX", [options.N_CTX], 1, whole=True)
        generator = torch.Generator().manual_seed(seed)
        start = DEVIATION * torch.randn(options.N_CTX, backbone.token_embedding.embedding_dim, generator=generator)
        context = start.to(backbone.device).requires_grad_()

        def tokens_of(bank: FeatureBank) -> Tensor:
            return backbone.context_tokens(placeholder_prompts(bank.classnames, options.N_CTX), options.N_CTX)

        def encode(tokens: Tensor) -> Tensor:
            return backbone.encode_with_context(tokens, context).to(bank.text_positive.device)

        tokens = tokens_of(bank)
        return Trainable([context], lambda: encode(tokens), transfer=lambda other: encode(tokens_of(other)))


def placeholder_prompts(classnames: Sequence[str], length: int) -> list[str]:
    """A sentence for each class, "X X ... X class name.", with `length` placeholders X, none longer than CLIP reads."""
    from ..backbones.clip import CONTEXT_LENGTH, count_tokens  # imports open_clip, which takes seconds

    prompts = [" ".join([PLACEHOLDER] * length + [f"{name.replace('_', ' ')}."]) for name in classnames]
    longest = max(prompts, key=count_tokens)
    if count_tokens(longest) > CONTEXT_LENGTH:
        name = longest.removeprefix(f"{PLACEHOLDER} " * length)
        raise UserError(
            f"N_CTX {length} and the class name {name!r} take {count_tokens(longest)} tokens, but CLIP reads "
            f"{CONTEXT_LENGTH}; lower N_CTX"
        )
    return prompts


class GraphAdapter(TrainedClassifier):
    """Trains a graph convolution over text features and one over the mean image features of the classes.

    Li, Lian, Lu, Bai, Chen, Wang: GraphAdapter: Tuning Vision-Language Models With Dual Knowledge Graph. NeurIPS 2023.

        z = tau * cos(f, beta * t_k + (1 - beta) * mean over the groups g of g_k)
        g_k = alpha * GCN_text(t_k; the text features of g) + (1 - alpha) * GCN_image(t_k; the image means of g)
        GCN(t_k; n_1 ... n_m) = tanh(sum over j of A_0j * n_j W + b_k),  n_0 = t_k

    Class k is in group k mod 4. For each class and group there is a fixed graph, whose nodes are the class and the m
    classes of the group: A is `D^-1/2 (relu(cos) + I) D^-1/2` over those m + 1 nodes, D holds the row sums. A matrix W
    for each of the two graphs and a bias b for each class are trained. As in the released file, alpha is 0.7, W starts
    uniform within 1 / sqrt(d), and b at 0. The schedule is the paper's.

    Distance from the original: the released file does not run (W is 512 wide whatever d is, K must be a multiple of 4,
    all classes need equally many shots, an import is missing); here K, d and the shots of each class are free. What it
    leaves to a configuration that was not released is 0.7 for beta, and TaskRes's batches and warm-up. The image means
    are multiplied by the mean norm of the text features, since a bank holds image features with unit norm.
    """

    defaults: ClassVar[Defaults] = {
        "ALPHA": 0.7,  # weight of the text's graph; the images' graph has the rest
        "BETA": 0.7,  # weight of the text feature; the graphs have the rest
        "GROUPS": 4,  # number of groups of classes; if there are fewer classes, their number
        "LR": 1e-3,  # Adam's learning rate
        "EPOCHS": 100,
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 5e-4,  # Adam's, which is added to the gradient (not decoupled, as in AdamW)
        **WARM_UP,
    }

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        check_numbers("GROUPS", [options.GROUPS], 1, whole=True)
        check_numbers("ALPHA and BETA", [options.ALPHA, options.BETA], 0, 1)
        text, (num_classes, width) = text_with_norm(bank), bank.text_positive.shape
        groups = min(options.GROUPS, num_classes)
        sums = torch.zeros_like(bank.text_positive).index_add(0, bank.train_labels, bank.cache_keys())
        means = sums / bank.train_labels.bincount(minlength=num_classes).clamp_min(1)[:, None]
        images = means * text.norm(dim=-1).mean()
        of_groups = [slice(group, None, groups) for group in range(groups)]
        # Of text and images, for each group
        gathered = [torch.stack([gather(text, nodes[own]) for own in of_groups]) for nodes in (text, images)]
        generator = torch.Generator().manual_seed(seed)
        start = (2 * torch.rand(2, width, width, generator=generator) - 1) / width**0.5
        weights = start.to(text.device).requires_grad_()
        biases = text.new_zeros(2, num_classes, width).requires_grad_()

        def class_features() -> Tensor:
            of_text, of_images = ((nodes @ w + b).tanh() for nodes, w, b in zip(gathered, weights, biases))
            graph = (options.ALPHA * of_text + (1 - options.ALPHA) * of_images).mean(dim=0)
            return options.BETA * text + (1 - options.BETA) * graph

        return Trainable([weights, biases], class_features)


def gather(classes: Tensor, nodes: Tensor) -> Tensor:
    """`sum over j of A_0j * n_j`, shape `[K, d]`, for each class `[K, d]` as node 0 beside the other nodes `[m, d]`."""
    unit = F.normalize(nodes, dim=-1)
    to_nodes = (F.normalize(classes, dim=-1) @ unit.t()).relu()  # [K, m]
    own_degree = 2 + to_nodes.sum(dim=1, keepdim=True)  # 2: the cosine of a node with itself is 1, and I adds 1
    degrees = to_nodes + (unit @ unit.t()).relu().sum(dim=1) + 1  # [K, m]
    return 2 / own_degree * classes + to_nodes / (own_degree * degrees).sqrt() @ nodes
