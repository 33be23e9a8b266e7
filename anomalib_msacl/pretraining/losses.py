"""The terms of the MSACL loss, ``l = l_ctr + l_MSACL + l_aug + l_pos`` (arXiv 2109.01303), and a dense term.

Each term is a pure function; a thin module above it keeps what the term has to remember. Symbols: ``z`` is
``f_theta(a(x))`` with ``a ~ A_n``, ``c_n`` the fixed centre of class ``n``, ``tau`` the temperature.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.pretraining.exchange import Alone, Exchange
from anomalib_msacl.recipe import Positives


def class_centres(z: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return ``c_n``, the mean feature of each class.

    Args:
        z: Features, shape ``(B, D)``.
        classes: Class of each feature, shape ``(B,)``, int64.
        num_classes: Number of classes, each of which must occur.

    Returns:
        Centres of shape ``(K, D)``.

    Raises:
        ValueError: If a class does not occur.
    """
    counts = torch.bincount(classes, minlength=num_classes)
    if len(counts) > num_classes or bool((counts == 0).any()):
        raise ValueError(f"class_centres: every class of 0 ... {num_classes - 1} must occur, counts {counts.tolist()}.")
    sums = torch.zeros(num_classes, z.shape[1], dtype=z.dtype, device=z.device).index_add(0, classes, z)
    return sums / counts[:, None]


def multi_centring_loss(z: Tensor, classes: Tensor, centres: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return ``l_ctr``, the mean of ``||z - c_n||^2 / scale``.

    Args:
        z: Features, shape ``(B, D)``.
        classes: Class of each feature, shape ``(B,)``.
        centres: Fixed centres, shape ``(K, D)``.
        scale: 1 is the paper's term. It diverges with unscaled features, so that :class:`MultiCentring` divides by
            the mean squared norm of the centres unless told otherwise.

    Returns:
        Scalar, at least 0.
    """
    return (z - centres[classes]).square().sum(dim=1).mean() / scale


def class_centred(z: Tensor, classes: Tensor, centres: Tensor) -> Tensor:
    """Return ``(z - c_n) / ||z - c_n||``, features on the hypersphere around their class centre.

    Args:
        z: Features, shape ``(B, D)``.
        classes: Class of each feature, shape ``(B,)``.
        centres: Fixed centres, shape ``(K, D)``.

    Returns:
        Unit vectors of shape ``(B, D)``.
    """
    return F.normalize(z - centres[classes], dim=1)


def contrastive_loss(
    features: Tensor,
    classes: Tensor,
    temperature: float = 0.2,
    alpha: float = 2.0,
    positives: Positives = "class",
    images: Tensor | None = None,
) -> Tensor:
    """Return ``l_MSACL``, the contrastive term on class-centred features.

    For an anchor ``i`` of class ``n`` and its positives ``P(i)``::

        l_i = - 1 / |P(i)|  sum_{p in P(i)}  log( exp(k(n, n) <f_i, f_p>) / sum_{j != i} exp(k(n, m_j) <f_i, f_j>) )

    where ``m_j`` is the class of ``j`` and ``k(n, m)`` is ``1 / (alpha tau)`` if ``n = m``, else ``1 / tau``: pairs of
    one class are pushed apart less. The mean runs over the anchors that have a positive. With ``alpha = 1`` this is
    the supervised contrastive loss.

    Args:
        features: Unit vectors, shape ``(B, D)``.
        classes: Class of each feature, shape ``(B,)``.
        temperature: ``tau``, above 0.
        alpha: At least 1; its value is not published.
        positives: ``"class"``: any other sample of the class. ``"image"``: another draw of the same class from the
            same image. Both readings fit the paper.
        images: Image of each feature, shape ``(B,)``; needed for ``"image"``.

    Returns:
        Scalar; 0 if no anchor has a positive.
    """
    if positives not in get_args(Positives):
        raise ValueError(f"contrastive_loss: positives is {positives!r}, but must be one of {get_args(Positives)}.")
    same_class = classes[:, None] == classes[None, :]
    kappa = torch.where(same_class, 1 / (alpha * temperature), 1 / temperature).to(features.dtype)
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logits = (kappa * (features @ features.T)).masked_fill(itself, -torch.inf)
    log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
    positive = same_class & ~itself
    if positives == "image":
        if images is None:
            raise ValueError('contrastive_loss: positives="image" needs the argument images, shape (B,).')
        positive = positive & (images[:, None] == images[None, :])
    number = positive.sum(dim=1)
    per_anchor = -log_probability.masked_fill(~positive, 0).sum(dim=1) / number.clamp_min(1)
    return per_anchor.sum() / (number > 0).sum().clamp_min(1)


def augmentation_prediction_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Return ``l_aug``, the cross-entropy of telling which ``A_n`` was applied.

    Args:
        logits: Shape ``(B, K)``.
        classes: The ``n`` of each sample, shape ``(B,)``.

    Returns:
        Scalar.
    """
    return F.cross_entropy(logits, classes)


def relative_position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Return ``l_pos``, the cross-entropy of telling which of the 8 neighbours a patch is.

    Args:
        logits: Shape ``(B, 8)``.
        positions: 0 to 7, row by row from the upper left, shape ``(B,)``.

    Returns:
        Scalar.
    """
    return F.cross_entropy(logits, positions)


def nearest_normal_distance(queries: Tensor, query_images: Tensor, bank: Tensor, bank_images: Tensor) -> Tensor:
    """Return ``s(p)``, the distance of each patch to the nearest normal patch of ANOTHER image.

    Args:
        queries: Patch features, shape ``(Q, D)``.
        query_images: Image that each query comes from, shape ``(Q,)``.
        bank: Normal patch features, shape ``(N, D)``.
        bank_images: Image that each bank patch comes from, shape ``(N,)``.

    Returns:
        Euclidean distances, shape ``(Q,)``, in 32 bits or more; infinite where the bank holds no other image.
    """
    # Distances by autograd through cdist are slow and undefined at 0: find the neighbour first, then subtract.
    with torch.no_grad():
        distance = torch.cdist(queries.float(), bank.float())
        distance.masked_fill_(query_images[:, None] == bank_images[None, :], torch.inf)
        nearest = distance.argmin(dim=1)
        none = distance.isinf().all(dim=1)
    difference = queries - bank[nearest]
    # Squares of features in 16 bits overflow from 256 on.
    squared = difference.to(torch.promote_types(difference.dtype, torch.float32)).square().sum(dim=1)
    return squared.clamp_min(1e-12).sqrt().masked_fill(none, torch.inf)


def lesion_margin_loss(
    lesion_distance: Tensor, normal_distance: Tensor, margin: float = 0.5, temperature: float = 0.25
) -> Tensor:
    """Return the dense term: lesion patches must lie further from normality than normal patches do.

    ``mean over pairs of  T softplus(-(s_lesion - s_normal - margin) / T)``, distances divided by the mean distance of
    the normal patches, which is held fixed. An extension of the paper: it asks of feature maps what the multi-class
    contrast asks of image features, and what a nearest-neighbour detector will ask.

    Args:
        lesion_distance: ``s(p)`` of patches in lesions, shape ``(P,)``.
        normal_distance: ``s(p)`` of normal patches, shape ``(N,)``.
        margin: In units of the mean normal distance.
        temperature: ``T``, softness of the margin in the same unit, above 0.

    Returns:
        Scalar, at least 0; 0 if either set is empty.
    """
    if len(lesion_distance) == 0 or len(normal_distance) == 0:
        return 0 * (lesion_distance.sum() + normal_distance.sum())
    unit = normal_distance.detach().mean().clamp_min(1e-6)
    gap = (lesion_distance[:, None] - normal_distance[None, :]) / unit
    return temperature * F.softplus((margin - gap) / temperature).mean()


class MultiCentring(nn.Module):
    """``l_ctr`` with centres that are computed once and then fixed.

    The centres are a buffer: no optimiser changes them and a checkpoint keeps them.

    Args:
        num_classes: ``|A|``.
        dim: Dimension of the features.
        rescale: Divide by the mean squared norm of the centres. False is the paper's term to the letter.
    """

    centres: Tensor
    ready: Tensor

    def __init__(self, num_classes: int, dim: int, rescale: bool = True) -> None:
        super().__init__()
        self.rescale = rescale
        self.register_buffer("centres", torch.zeros(num_classes, dim))
        self.register_buffer("ready", torch.tensor(data=False))

    @torch.no_grad()
    def fix(self, z: Tensor, classes: Tensor) -> None:
        """Set the centres from features of the untouched encoder, once.

        Args:
            z: Features, shape ``(B, D)``.
            classes: Class of each feature, shape ``(B,)``.

        Raises:
            RuntimeError: If the centres are fixed already; moving them can collapse the classes.
        """
        if self.ready:
            raise RuntimeError("MultiCentring: the centres are fixed already and must not move.")
        self.centres.copy_(class_centres(z, classes, len(self.centres)))
        self.ready.fill_(value=True)

    def release(self) -> None:
        """Let the centres be fixed anew, for a new training that starts from other weights."""
        self.ready.fill_(value=False)

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of features ``(B, D)`` of classes ``(B,)``."""
        scale = self.centres.square().sum(dim=1).mean().clamp_min(1e-12) if self.rescale else 1.0
        return multi_centring_loss(z, classes, self.centres, scale)


class MsaclContrastive(nn.Module):
    """``l_MSACL`` of features and centres; see :func:`contrastive_loss` for the arguments."""

    def __init__(self, temperature: float = 0.2, alpha: float = 2.0, positives: Positives = "class") -> None:
        super().__init__()
        self.temperature, self.alpha, self.positives = temperature, alpha, positives

    def forward(self, z: Tensor, classes: Tensor, centres: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the loss of features ``(B, D)``, classes ``(B,)``, centres ``(K, D)`` and images ``(B,)``."""
        features = class_centred(z, classes, centres)
        return contrastive_loss(features, classes, self.temperature, self.alpha, self.positives, images)


class AugmentationPrediction(nn.Module):
    """``l_aug`` with its linear head on features of dimension ``dim``."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_classes)

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of features ``(B, dim)`` of classes ``(B,)``."""
        return augmentation_prediction_loss(self.head(features), classes)


class RelativePosition(nn.Module):
    """``l_pos`` with its head on the features of a patch and of its neighbour."""

    NEIGHBOURS = 8

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, self.NEIGHBOURS))

    def forward(self, patch: Tensor, neighbour: Tensor, positions: Tensor) -> Tensor:
        """Return the loss of features ``(B, dim)`` of patches and of neighbours at ``positions`` ``(B,)``."""
        return relative_position_loss(self.head(torch.cat([patch, neighbour], dim=1)), positions)


class DenseLesion(nn.Module):
    """The dense term on one feature map; see :func:`lesion_margin_loss`.

    Features are averaged 3 x 3 as PatchCore does. Lesion patches are those covered by a lesion to more than one half,
    normal patches those of lesion images that no lesion touches, and the bank holds patches of images without lesions.

    Args:
        margin: In units of the mean normal distance.
        temperature: Softness of the margin in the same unit.
        queries: Patches of either kind at most.
        bank: Normal patches to search at most.
    """

    def __init__(self, margin: float = 0.5, temperature: float = 0.25, queries: int = 256, bank: int = 1024) -> None:
        super().__init__()
        self.margin, self.temperature, self.queries, self.bank = margin, temperature, queries, bank

    def forward(self, features: Tensor, masks: Tensor, images: Tensor, exchange: Exchange | None = None) -> Tensor:
        """Return the loss.

        Args:
            features: Feature maps, shape ``(B, C, h, w)``.
            masks: Lesion masks, shape ``(B, 1, H, W)``; empty for normal images.
            images: Which original image each map comes from, shape ``(B,)``.
            exchange: Joins them with those of other processes; None where there are none.

        Returns:
            Scalar; 0 where there is no lesion or nothing to compare it with.
        """
        patches = F.avg_pool2d(features, 3, 1, 1).movedim(1, -1)
        exchange = exchange or Alone(images, images)
        coverage = exchange.rows(cells(masks.to(patches.dtype), features)[:, 0])
        owner = exchange.owners[:, None, None].expand(coverage.shape)
        normal_image = exchange.rows(masks.flatten(1).amax(dim=1) == 0)[:, None, None].expand(coverage.shape)
        bank = _some(normal_image, self.bank, exchange)
        lesion = _some(coverage > 0.5, self.queries, exchange)
        normal = _some((coverage == 0) & ~normal_image, self.queries, exchange)
        normality = exchange.take(patches, bank)
        distances = (
            [
                nearest_normal_distance(exchange.take(patches, rows), owner[rows], normality, owner[bank])
                for rows in (lesion, normal)
            ]
            if len(bank[0])
            else [patches.sum()[None][:0]] * 2
        )
        lesion_distance, normal_distance = (distance[~distance.isinf()] for distance in distances)
        return lesion_margin_loss(lesion_distance, normal_distance, self.margin, self.temperature)


def cells(masks: Tensor, features: Tensor) -> Tensor:
    """Return the share of lesion in each cell of a feature map.

    Args:
        masks: Lesion masks, shape ``(B, 1, H, W)``.
        features: Maps of shape ``(B, C, h, w)``; only their size counts.

    Returns:
        Shares in [0, 1], shape ``(B, 1, h, w)``.
    """
    return F.adaptive_avg_pool2d(masks, (features.shape[-2], features.shape[-1]))


def _some(mask: Tensor, number: int, exchange: Exchange) -> tuple[Tensor, ...]:
    """Return the index of at most ``number`` True entries, drawn at random."""
    rows = mask.nonzero()
    return rows[exchange.some(len(rows), number, mask.device)].unbind(dim=1)
