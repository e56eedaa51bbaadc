"""Transductive methods, which predict all test images jointly: TransCLIP, ZLaP, StatA, ECALP and ADAPT.

Zanella, Gérin, Ben Ayed: Boosting Vision-Language Models with Transduction. NeurIPS 2024. Stojnić, Kalantidis, Tolias:
Label Propagation for Zero-shot Classification with Vision-Language Models. CVPR 2024. Zanella, Fuchs, De Vleeschouwer,
Ben Ayed: Realistic Test-Time Adaptation of Vision-Language Models. CVPR 2025. Li, Su, Goodge, Jia, Xu: Efficient and
Context-Aware Label Propagation for Zero-/Few-Shot Training-Free Adaptation of Vision-Language Model. ICLR 2025. Zhang,
Kim, Choi, Kim, Liu, Hong: Backpropagation-Free Test-Time Adaptation via Probabilistic Gaussian Alignment. NeurIPS 2025.

Each starts from the predictions `y_i = softmax(z_i)` of another method, its option `BASE`, and corrects them by the
features of all M test images. They need `--unlabelled test`, and their records are separate from those of inductive
methods.

TransCLIP models every class as a Gaussian, with one diagonal covariance for all classes. The assignment `q_i` of an
image depends on the likelihoods `p_i`, on the assignments of its three nearest images, and on `y_i`. The assignments
are updated five times, then the Gaussians once, and all of this ten times:

    q_i = softmax( log y_i + log p_i / 50 + (sum_j w_ij q_j + sum_j w_ji q_j) / 6 )

StatA is TransCLIP with one covariance per class, and averages each Gaussian with that of the text. If n images are
predicted as a class, their mean and covariance have the weight `n / (n + ANCHOR)`.

ZLaP builds a graph with edges from every image to the nearest images, and to the nearest of the class nodes `x_c`. The
class nodes are the class weights of BASE; for zero-shot CLIP these are the text features. Labels spread from the class
nodes:

    scores = (I - ALPHA S)^-1 e_c,   S = D^-1/2 (W + W^T) D^-1/2,   edges to classes: cos(f_i, x_c)^GAMMA

Differences from the original: in TransCLIP, labelled images enter through the predictions of BASE only, and not also
through the Gaussians with a weight that is selected on val. ZLaP's system is solved by summing its series instead of by
conjugate gradients; its "proxy" class nodes are not implemented. StatA omits the determinants of the Gaussians unless
`DETERMINANT` is set, because its accuracy on our banks is higher without them; and it divides the first covariance by
the number of images once, where the released code does so once for every 2,500 images.

The classes `ECALP` and `ADAPT` state their equations and differences.

Shapes: M test images, N training images, K classes, d feature width.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..utils.option import OUR_METHOD
from .base import EPSILON, FittedMethod, Method
from .options import BaselineOptions, by_dataset, option

COMPARED_ROWS = 2048  # number of images to compare with all others at a time
NEIGHBOURS = 3  # edges of an image in TransCLIP and StatA
ASSIGNMENT_UPDATES = 5  # of TransCLIP and StatA, between two updates of the Gaussians
GAUSSIAN_UPDATES = 10  # of TransCLIP and StatA
LIKELIHOOD = 1 / 50  # weight of the Gaussians' likelihoods
CONFIDENT = 8  # number of most confident images in the initial mean of a class
BASES = (OUR_METHOD, "ZeroShot")  # methods whose predictions can be corrected
SERIES = 25  # number of terms of ZLaP's series; the remainder is of the order of ALPHA to this power


@dataclass(frozen=True)
class TransductiveOptions(BaselineOptions):
    """Options of every transductive method."""

    base: str = option(OUR_METHOD, "BASE", "method whose predictions to correct", choices=BASES)


@dataclass(frozen=True)
class ClassNodeOptions(TransductiveOptions):
    """Options of a method that propagates labels from class nodes."""

    base: str = option(OUR_METHOD, "BASE", "method whose class weights are the class nodes", choices=BASES)


TransductiveOptionsT = TypeVar("TransductiveOptionsT", bound=TransductiveOptions)


class TransductiveMethod(Method[TransductiveOptionsT]):
    """Base class of methods that correct the predictions of `BASE` on all test images jointly.

    `BASE` is "HeGraphAdapter", with the options of the run, or "ZeroShot".
    """

    needs_base: ClassVar[bool] = True
    not_saved: ClassVar[str] = "its prediction of an image depends on the other test images"

    def fit(
        self,
        bank: FeatureBank,
        options: TransductiveOptionsT,
        seed: int,
        backbone: object = None,
        base: FittedMethod | None = None,
    ) -> FittedMethod:
        assert base is not None  # `needs_base`
        weights = bank.text_positive if base.classifier is None else F.normalize(base.classifier.weights, dim=1)

        def logits(features: Tensor) -> Tensor:
            return self.correct(features, base.logits(features), bank, weights, options)

        return FittedMethod(logits, num_parameters=base.num_parameters, transductive=True)

    @abstractmethod
    def correct(
        self, features: Tensor, logits: Tensor, bank: FeatureBank, weights: Tensor, options: TransductiveOptionsT
    ) -> Tensor:
        """Return corrected logits, shape `[M, K]`.

        Args:
            features: Unit-norm features of all test images, shape `[M, d]`.
            logits: Logits of the base method, shape `[M, K]`.
            bank: Training images and text features.
            weights: Unit-norm class weights of the base method, or the text features if it has none, shape `[K, d]`.
            options: Options of the method.
        """


@dataclass(frozen=True)
class Neighbours:
    """Edges from every image to its nearest images, or to the nearest of other nodes.

    Attributes:
        indices: Indices of the nearest images or nodes, shape `[M, k]`.
        weights: Cosines with them, or 0 for negative ones, shape `[M, k]`.
    """

    indices: Tensor
    weights: Tensor

    @classmethod
    def nearest(cls, features: Tensor, count: int, nodes: Tensor | None = None) -> "Neighbours":
        """Connect each image, of features `[M, d]`, with its `count` nearest nodes, or all if there are fewer.

        By default the nodes are the other images.
        """
        keys = features if nodes is None else nodes
        count = min(count, len(keys) - (nodes is None))
        indices = []
        weights = []
        starts = range(0, len(features), COMPARED_ROWS)
        for start, rows in zip(starts, features.split(COMPARED_ROWS)):
            cosines = rows @ keys.t()
            if nodes is None:
                positions = torch.arange(len(rows), device=features.device)
                cosines[positions, positions + start] = -2.0  # no edge to itself: lower than any cosine
            top = cosines.topk(count, dim=1)
            indices.append(top.indices)
            weights.append(top.values.clamp_min(0))
        return cls(torch.cat(indices), torch.cat(weights))

    def propagate(self, labels: Tensor) -> Tensor:
        """Return `sum_j w_ij q_j + sum_j w_ji q_j` for labels `q` of shape `[M, K]`."""
        total = torch.zeros_like(labels)
        for indices, weight in zip(self.indices.t(), self.weights.t().unsqueeze(2)):
            total += weight * labels[indices]
            total.index_add_(0, indices, weight * labels)
        return total


class TransCLIP(TransductiveMethod[TransductiveOptions]):
    """TransCLIP: Gaussian classes with one diagonal covariance, and a graph of three nearest neighbours."""

    options: ClassVar[type] = TransductiveOptions

    def correct(
        self, features: Tensor, logits: Tensor, bank: FeatureBank, weights: Tensor, options: TransductiveOptions
    ) -> Tensor:
        initial = logits.log_softmax(dim=1)
        neighbours = Neighbours.nearest(features, NEIGHBOURS)
        labels = initial.exp()
        confident = labels.topk(min(CONFIDENT, len(labels)), dim=0)  # [8, K]
        means = F.normalize(torch.einsum("nk,nkd->kd", confident.values, features[confident.indices]), dim=1)
        variance = torch.full_like(features[0], 1 / features.shape[1])
        for _ in range(GAUSSIAN_UPDATES):
            labels = _assign(initial, _log_gaussian(features, means, variance), labels, neighbours).exp()
            means = F.normalize(labels.t() @ features, dim=1)
            variance = _shared_variance(features, labels, means)
        return _assign(initial, _log_gaussian(features, means, variance), labels, neighbours)


@dataclass(frozen=True)
class StatAOptions(TransductiveOptions):
    """Options of `StatA`."""

    anchor: float = option(1.0, "ANCHOR", "number of images that the Gaussian of the text counts as", least=0)
    determinant: bool = option(
        False, "DETERMINANT", "whether to include the determinants of the covariances in the likelihoods"
    )


class StatA(TransductiveMethod[StatAOptions]):
    """StatA: TransCLIP with one diagonal covariance per class, and Gaussians anchored at the text features."""

    options: ClassVar[type] = StatAOptions

    def correct(
        self, features: Tensor, logits: Tensor, bank: FeatureBank, weights: Tensor, options: StatAOptions
    ) -> Tensor:
        initial = logits.log_softmax(dim=1)
        neighbours = Neighbours.nearest(features, NEIGHBOURS)
        text = bank.text_positive
        labels = initial.exp()
        means = text
        first_variance = _shared_variance(features, labels, means)
        variances = first_variance.expand_as(means)

        def assign(labels: Tensor) -> Tensor:  # with the current means and variances
            likelihood = _log_gaussian(features, means, variances)
            if options.determinant:
                likelihood = likelihood - variances.log().sum(dim=-1) / 2
            return _assign(initial, likelihood, labels, neighbours)

        for _ in range(GAUSSIAN_UPDATES):
            labels = assign(labels).exp()
            predicted = labels.argmax(dim=1).bincount(minlength=labels.shape[1]).to(labels.dtype)[:, None]
            trust = predicted / (predicted + options.anchor + EPSILON)
            counts = labels.sum(dim=0)[:, None].clamp_min(EPSILON)
            image_means = labels.t() @ features / counts
            means = F.normalize(trust * F.normalize(image_means, dim=1) + (1 - trust) * text, dim=1)
            image_variances = (labels.t() @ features.square()) / counts - 2 * image_means * means + means.square()
            text_variances = first_variance + (text - means).square()
            variances = (trust * image_variances + (1 - trust) * text_variances).clamp_min(EPSILON)
        return assign(labels)


@dataclass(frozen=True)
class ZLaPOptions(ClassNodeOptions):
    """Options of `ZLaP`."""

    neighbours: int = option(5, "NEIGHBOURS", "edges of an image to images, counting itself, and to classes", least=1)
    gamma: float = option(5.0, "GAMMA", "exponent of the edges to classes", least=0)
    alpha: float = option(0.3, "ALPHA", "strength of the propagation, below 1", least=0, most=1)


class ZLaP(TransductiveMethod[ZLaPOptions]):
    """ZLaP: label propagation from class nodes over a graph of nearest neighbours."""

    options: ClassVar[type] = ZLaPOptions

    def correct(
        self, features: Tensor, logits: Tensor, bank: FeatureBank, weights: Tensor, options: ZLaPOptions
    ) -> Tensor:
        num_images, num_classes = logits.shape
        neighbours = Neighbours.nearest(features, options.neighbours - 1)
        nearest = (features @ weights.t()).clamp_min(0).topk(min(options.neighbours, num_classes), dim=1)
        class_edges = torch.zeros_like(logits).scatter_(1, nearest.indices, nearest.values.pow(options.gamma))
        class_degrees = class_edges.sum(dim=0)
        ones = torch.ones(num_images, 1, dtype=features.dtype, device=features.device)
        image_degrees = class_edges.sum(dim=1) + neighbours.propagate(ones)[:, 0]
        class_root = class_degrees.clamp_min(EPSILON).rsqrt().unsqueeze(1)
        image_root = image_degrees.clamp_min(EPSILON).rsqrt().unsqueeze(1)
        edges = image_root * class_edges * class_root.t()
        identity = torch.eye(num_classes).to(features)  # e
        classes = identity
        images = torch.zeros_like(logits)
        for _ in range(SERIES):  # x <- e + ALPHA S x
            propagated = options.alpha * (edges @ classes + image_root * neighbours.propagate(image_root * images))
            classes = identity + options.alpha * (edges.t() @ images)
            images = propagated
        return images.clamp_min(EPSILON).log()


@dataclass(frozen=True)
class ECALPOptions(ClassNodeOptions):
    """Options of `ECALP`."""

    images: int = option(8, "IMAGES", "edges of an image to test images, counting itself", least=0)
    classes: int = option(3, "CLASSES", "edges of an image to classes", least=0)
    labelled: int = option(8, "LABELLED", "edges of an image to labelled images", least=0)
    gamma: float = option(10.0, "GAMMA", "exponent of the cosines", least=0)
    steps: int = option(3, "STEPS", "number of updates", least=0)


class ECALP(TransductiveMethod[ECALPOptions]):
    """ECALP: label propagation from class nodes and labelled images, with reweighted features.

    Every test image has edges to the nearest test images, itself included, to the nearest class nodes, and to the
    nearest labelled images. A weight is a cosine to the power of GAMMA. The cosine with a test image is
    `cos(v * f_i, f_j)`, where `v` is the variance of the class nodes in each channel, and with a labelled image
    `cos(f_i / v', f_j)`, where `v'` is the variance of the labelled images. With the degrees `D` of all nodes:

        Y <- S_c Y_c + S_l Y_l + S_i Y,   S = D^-1/2 (W + W^T) D^-1/2,   starting at Y = 0

    The columns of S are those of class nodes, labelled images and test images. `Y_c` is the identity, `Y_l` has the
    labels, and the labels `Y` of the test images are updated three times.

    Differences from the original: the authors predict a stream, image i from the images up to i. This is one call of
    their function for all images, as in the first step of a stream. With ALPHA 1, their value, the labels of earlier
    steps only change the start of the iteration.
    """

    options: ClassVar[type] = ECALPOptions

    def correct(
        self, features: Tensor, logits: Tensor, bank: FeatureBank, weights: Tensor, options: ECALPOptions
    ) -> Tensor:
        """Return the logarithms of the propagated labels `Y`, shape `[M, K]`, which take the place of logits.

        Args:
            features: Unit-norm features of all test images, shape `[M, d]`.
            logits: Logits of the base method, shape `[M, K]`; only their shape and dtype matter.
            bank: Labelled images.
            weights: Class nodes, of unit norm, shape `[K, d]`.
            options: Options of the method.
        """

        def edges(count: int, nodes: Tensor, importance: Tensor) -> Neighbours:
            """Edges to the `count` nearest nodes, of features whose channels have these factors."""
            nearest = Neighbours.nearest(F.normalize(importance * features, dim=1), count, nodes)
            return Neighbours(nearest.indices, nearest.weights.pow(options.gamma))

        labelled = bank.cache_keys()
        every_channel = torch.ones_like(features[0])
        variance = weights.var(dim=0, correction=0)  # v
        inverse_variance = 1 / labelled.var(dim=0, correction=0).clamp_min(EPSILON)  # 1 / v'
        to_images = edges(options.images, features, variance)
        to_classes = edges(options.classes, weights, every_channel)
        to_labelled = edges(options.labelled, labelled, inverse_variance)
        degrees = to_images.propagate(torch.ones_like(logits[:, :1]))  # D of the test images, [M, 1]
        degrees = degrees + to_classes.weights.sum(dim=1, keepdim=True)
        degrees = degrees + to_labelled.weights.sum(dim=1, keepdim=True)
        root = _inverse_root(degrees)
        received = torch.zeros_like(logits)  # D^1/2 (S_c Y_c + S_l Y_l)
        class_labels = torch.arange(len(weights), device=bank.train_labels.device)
        for neighbours, node_labels in ((to_classes, class_labels), (to_labelled, bank.train_labels)):
            node_degrees = torch.zeros_like(node_labels, dtype=logits.dtype)
            node_degrees.index_add_(0, neighbours.indices.flatten(), neighbours.weights.flatten())
            normalised = neighbours.weights * _inverse_root(node_degrees)[neighbours.indices]
            received.scatter_add_(1, node_labels[neighbours.indices], normalised)
        labels = torch.zeros_like(logits)  # Y
        for _ in range(options.steps):
            labels = root * (received + to_images.propagate(root * labels))
        return labels.clamp_min(EPSILON).log()


@dataclass(frozen=True)
class ADAPTOptions(TransductiveOptions):
    """Options of `ADAPT`."""

    bank_size: int = option(6, "BANK_SIZE", "number of images in the bank of a class", least=1)
    alpha: float = option(0.9, "ALPHA", "weight of the images in the mean of a class")
    scale: float = by_dataset(
        20.0,
        "SCALE",
        "divisor of the log-likelihoods; by default the authors' for ImageNet",
        {
            "Caltech101": 100.0, "DescribableTextures": 60.0, "EuroSAT": 100.0, "FGVCAircraft": 100.0,
            "Food101": 100.0, "ImageNetA": 40.0, "ImageNetR": 100.0, "ImageNetV2": 30.0, "OxfordFlowers": 60.0,
            "OxfordPets": 100.0, "StanfordCars": 60.0, "SUN397": 60.0, "UCF101": 70.0,
        },
        above=0,
    )  # fmt: skip


class ADAPT(TransductiveMethod[ADAPTOptions]):
    """ADAPT: Gaussian classes with one covariance, estimated from the most confident test images of each class.

    The bank of a class has the BANK_SIZE images that are predicted as the class with the least entropy. The mean of a
    class is the average of all test images and, once more, of its bank, weighted by the probabilities `y_ik` of BASE,
    and then averaged with its class weight `t_k`. The covariance C of the n images in the banks around the means is
    shrunk towards a multiple of the identity. With `P_ik` the softmax of the Gaussians' log-likelihoods:

        mu_k = ALPHA * average_k + (1 - ALPHA) * t_k,   precision = d ((n - 1) C + trace(C) I)^-1
        z'_ik = z_ik * exp( (log P_ik + SCALE / (2 n) * sum_j y_jk f_i . f_j) / SCALE ),   j in the bank of class k

    The factor is divided by its largest value over the classes. A class without predicted images has the mean `t_k`.

    Differences from the original: labelled images enter through the logits and class weights of BASE, where the
    original has zero-shot CLIP with descriptions of a language model. As there, the largest logit of an image must be
    positive, as it is with text features of CLIP.
    """

    options: ClassVar[type] = ADAPTOptions

    def correct(
        self, features: Tensor, logits: Tensor, bank: FeatureBank, weights: Tensor, options: ADAPTOptions
    ) -> Tensor:
        scale = options.scale
        log_y = logits.log_softmax(dim=1)
        y = log_y.exp()
        predicted = logits.argmax(dim=1)
        rows = _most_confident((y * log_y).sum(dim=1), predicted, options.bank_size)
        images = features[rows]
        labels = predicted[rows]
        confident = F.one_hot(labels, len(weights)) * y[rows]  # y_jk of the images j in the bank of class k, [n, K]
        sums = confident.t() @ images  # [K, d]
        totals = (confident.sum(dim=0) + y.sum(dim=0)).clamp_min(EPSILON)
        average = (sums + y.t() @ features) / totals[:, None]
        is_predicted = (predicted.bincount(minlength=len(weights)) > 0)[:, None]
        means = torch.where(is_predicted, options.alpha * average + (1 - options.alpha) * weights, weights)
        deviations = images - means[labels]
        deviations = deviations - deviations.mean(dim=0)
        scatter = deviations.t() @ deviations
        count = len(rows)
        ridge = scatter.trace() / max(count - 1, 1) * torch.eye(len(scatter)).to(scatter)
        directions = means @ (len(scatter) * torch.linalg.pinv(scatter + ridge))
        log_p = (features @ directions.t() - (directions * means).sum(dim=1) / 2).log_softmax(dim=1)
        evidence = log_p + scale / (2 * count) * (features @ sums.t())
        return logits * ((evidence - evidence.amax(dim=1, keepdim=True)) / scale).exp()


def _most_confident(confidence: Tensor, predicted: Tensor, count: int) -> Tensor:
    """Return the rows of the `count` most confident images of each predicted class, from values of shape `[M]`."""
    order = confidence.argsort(descending=True, stable=True)
    order = order[predicted[order].argsort(stable=True)]
    sizes = predicted.bincount()
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(dim=0) - sizes)[predicted[order]]
    return order[rank < count]


def _inverse_root(degrees: Tensor) -> Tensor:
    return 1 / (degrees.sqrt() + 1e-6)  # as in the code of ECALP


def _assign(initial: Tensor, likelihood: Tensor, labels: Tensor, neighbours: Neighbours) -> Tensor:
    """Return `log q` after the updates of the assignments, from `log y`, `log p` and the current `q`, all `[M, K]`."""
    fixed = initial + LIKELIHOOD * likelihood
    for _ in range(ASSIGNMENT_UPDATES):
        log_labels = (fixed + neighbours.propagate(labels) / (2 * NEIGHBOURS)).log_softmax(dim=1)
        labels = log_labels.exp()
    return log_labels


def _shared_variance(features: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Return the diagonal covariance of all classes around their means, shape `[d]`."""
    products = (labels.t() @ features * means).sum(dim=0) / len(features)
    squares = (labels.sum(dim=0)[:, None] * means.square()).sum(dim=0) / len(features)
    return (features.square().mean(dim=0) - 2 * products + squares).clamp_min(EPSILON)


def _log_gaussian(features: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Return `-((f - mu) / sigma)^2 / 2` summed over the width, shape `[M, K]`, for variances `[d]` or `[K, d]`."""
    inverse = 1 / variances
    distance = features.square() @ inverse.expand_as(means).t() - 2 * features @ (means * inverse).t()
    return -(distance + (means.square() * inverse).sum(dim=1)) / 2
