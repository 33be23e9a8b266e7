"""Each term of the loss against its formula written as a plain loop."""

import itertools
import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.pretraining.losses import (
    AugmentationPrediction,
    DenseLesion,
    MsaclContrastive,
    MultiCentring,
    RelativePosition,
    augmentation_prediction_loss,
    class_centred,
    class_centres,
    contrastive_loss,
    lesion_margin_loss,
    multi_centring_loss,
    nearest_normal_distance,
    relative_position_loss,
)

CLASSES = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 3])  # class 3 has no positive
IMAGES = torch.tensor([0, 1, 0, 0, 2, 2, 0, 1, 3])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


def dot(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def rotation(dim: int) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=5))[0]


# l_ctr


def test_class_centres_are_the_means():
    z = normal(9, 3)
    centres = class_centres(z, CLASSES, 4)
    for n in range(4):
        rows = [row for row, label in zip(z.tolist(), CLASSES.tolist(), strict=True) if label == n]
        assert centres[n].tolist() == pytest.approx([sum(column) / len(rows) for column in zip(*rows, strict=True)])


@pytest.mark.parametrize("classes", [[0, 0, 2, 2], [0, 1, 2, 3]], ids=["missing", "too many"])
def test_class_centres_need_every_class(classes):
    with pytest.raises(ValueError, match="must occur, counts"):
        class_centres(normal(4, 3), torch.tensor(classes), 3)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_multi_centring_equals_a_plain_loop(scale):
    z, centres = normal(9, 5), normal(4, 5, seed=1)
    total = sum(
        sum((a - b) ** 2 for a, b in zip(row, centres[n].tolist(), strict=True))
        for row, n in zip(z.tolist(), CLASSES.tolist(), strict=True)
    )
    assert multi_centring_loss(z, CLASSES, centres, scale).item() == pytest.approx(total / 9 / scale)


def test_multi_centring_is_zero_on_the_centres_only():
    centres = normal(4, 5)
    assert multi_centring_loss(centres[CLASSES], CLASSES, centres) == 0
    assert multi_centring_loss(centres[CLASSES] + 1e-3, CLASSES, centres) > 0


def fixed(rescale: bool = True) -> MultiCentring:
    term = MultiCentring(4, 5, rescale)
    term.fix(normal(9, 5).float(), CLASSES)
    return term


def test_module_divides_by_the_squared_norm_of_the_centres():
    z, term = normal(9, 5, seed=1).float(), fixed()
    plain = multi_centring_loss(z, CLASSES, term.centres)
    size = sum(dot(row, row) for row in term.centres.tolist()) / 4
    assert term(z, CLASSES).item() == pytest.approx(plain.item() / size, rel=1e-5)
    assert fixed(rescale=False)(z, CLASSES).item() == pytest.approx(plain.item(), rel=1e-5)


def test_rescaled_term_does_not_depend_on_the_unit_of_the_features():
    z, start = normal(9, 5, seed=1).float(), normal(9, 5).float()
    values = []
    for unit_of_features in (1, 30):
        term = MultiCentring(4, 5)
        term.fix(unit_of_features * start, CLASSES)
        values.append(term(unit_of_features * z, CLASSES).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_optimiser_moves_features_but_not_centres():
    term, z = fixed(), normal(9, 5, seed=1).float().requires_grad_()
    before = term.centres.clone()
    optimiser = torch.optim.SGD([z, *term.parameters()], lr=0.1, weight_decay=0.1)
    loss = term(z, CLASSES)
    loss.backward()
    optimiser.step()
    assert torch.equal(term.centres, before)
    assert not term.centres.requires_grad
    assert term(z, CLASSES) < loss


def test_centres_do_not_carry_a_gradient_to_the_encoder():
    z = normal(9, 5).float().requires_grad_()
    term = MultiCentring(4, 5)
    term.fix(z, CLASSES)
    assert not term.centres.requires_grad


def test_centres_are_fixed_once():
    with pytest.raises(RuntimeError, match="must not move"):
        fixed().fix(normal(9, 5).float(), CLASSES)


def test_centres_survive_a_state_dict_and_a_file(tmp_path):
    term = fixed()
    torch.save(term.state_dict(), tmp_path / "term.pt")
    for state in (term.state_dict(), torch.load(tmp_path / "term.pt", weights_only=True)):
        loaded = MultiCentring(4, 5)
        loaded.load_state_dict(state)
        assert torch.equal(loaded.centres, term.centres)
        with pytest.raises(RuntimeError, match="must not move"):
            loaded.fix(normal(9, 5).float(), CLASSES)


# l_MSACL


def contrastive_by_loop(features, classes, tau, alpha, positives, images) -> float:
    """Follow the formula of the docstring, in Python floats."""
    f, n, x = features.tolist(), classes.tolist(), images.tolist()
    terms = []
    for i in range(len(f)):
        others = [j for j in range(len(f)) if j != i]
        score = {j: dot(f[i], f[j]) / (alpha * tau if n[i] == n[j] else tau) for j in others}
        chosen = [p for p in others if n[p] == n[i] and (positives == "class" or x[p] == x[i])]
        denominator = sum(math.exp(score[j]) for j in others)
        if chosen:
            terms.append(-sum(math.log(math.exp(score[p]) / denominator) for p in chosen) / len(chosen))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("positives", ["class", "image"])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("tau", [0.2, 0.7])
def test_contrastive_equals_a_plain_loop(tau, alpha, positives):
    features = unit(9, 6)
    expected = contrastive_by_loop(features, CLASSES, tau, alpha, positives, IMAGES)
    found = contrastive_loss(features, CLASSES, tau, alpha, positives, IMAGES)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("positives", ["class", "image"])
def test_contrastive_module_centres_the_features_first(positives):
    z, centres = normal(9, 6), normal(4, 6, seed=1)
    rows = []
    for row, n in zip(z.tolist(), CLASSES.tolist(), strict=True):
        difference = [a - b for a, b in zip(row, centres[n].tolist(), strict=True)]
        rows.append([value / math.sqrt(dot(difference, difference)) for value in difference])
    expected = contrastive_by_loop(torch.tensor(rows, dtype=torch.float64), CLASSES, 0.3, 3, positives, IMAGES)
    found = MsaclContrastive(0.3, 3, positives)(z, CLASSES, centres, IMAGES)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_alpha_one_and_centres_zero_is_supervised_contrastive(temperature):
    z = normal(9, 6)
    found = MsaclContrastive(temperature, alpha=1)(z, CLASSES, torch.zeros(4, 6, dtype=torch.float64))
    assert found.item() == pytest.approx(SupConLoss(temperature)(z, CLASSES).item())


@pytest.mark.parametrize("batch", [1, 4])
def test_no_positive_anywhere_gives_zero_and_no_gradient(batch):
    features = unit(batch, 6).requires_grad_()
    loss = contrastive_loss(features, torch.arange(batch))
    loss.backward()
    assert loss == 0
    assert features.grad.abs().sum() == 0


def test_positives_of_the_image_need_images():
    with pytest.raises(ValueError, match="images"):
        contrastive_loss(unit(9, 6), CLASSES, positives="image")


@pytest.mark.parametrize("positives", ["class", "image"])
def test_order_of_the_batch_does_not_matter(positives):
    z, centres = normal(9, 6), normal(4, 6, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    term = MsaclContrastive(positives=positives)
    first, second = (term(z[rows], CLASSES[rows], centres, IMAGES[rows]).item() for rows in (torch.arange(9), order))
    assert first == pytest.approx(second)


def test_rotation_of_feature_space_changes_no_term():
    z, centres, turn = normal(9, 6), normal(4, 6, seed=1), rotation(6)
    for term in (MsaclContrastive(), multi_centring_loss):
        assert term(z @ turn, CLASSES, centres @ turn).item() == pytest.approx(term(z, CLASSES, centres).item())


def test_distance_from_the_centre_matters_to_centring_alone():
    z, centres = normal(9, 6), normal(4, 6, seed=1)
    scaled = centres[CLASSES] + 3 * (z - centres[CLASSES])
    contrast = MsaclContrastive()
    assert contrast(scaled, CLASSES, centres).item() == pytest.approx(contrast(z, CLASSES, centres).item())
    ratio = multi_centring_loss(scaled, CLASSES, centres) / multi_centring_loss(z, CLASSES, centres)
    assert ratio.item() == pytest.approx(9)


def test_class_centred_features_point_away_from_their_centre():
    z, centres = normal(9, 6), normal(4, 6, seed=1)
    features = class_centred(z, CLASSES, centres)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(9, dtype=torch.float64))
    length = (z - centres[CLASSES]).norm(dim=1, keepdim=True)
    torch.testing.assert_close(centres[CLASSES] + length * features, z)


def test_alpha_pushes_other_classes_harder_than_the_own():
    # Samples 0 and 1 attract each other; 2 (same class, other image) and 3 (other class) are only pushed away.
    classes, images = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 2])
    ratios = []
    for alpha in (1.0, 1.5, 3.0):
        features = torch.ones(4, 1, dtype=torch.float64).requires_grad_()
        contrastive_loss(features, classes, alpha=alpha, positives="image", images=images).backward()
        own, other = features.grad[2:, 0].tolist()
        assert own > 0
        ratios.append(other / own)
    assert ratios[0] == pytest.approx(1)
    assert ratios[0] < ratios[1] < ratios[2]


def test_tight_and_separate_clusters_have_the_smaller_loss():
    classes = torch.tensor([0, 0, 0, 1, 1, 1])
    corners = torch.eye(2, dtype=torch.float64)
    assert contrastive_loss(corners[classes], classes) < contrastive_loss(corners[classes.roll(1)], classes)


# l_aug and l_pos


def cross_entropy_by_loop(logits: torch.Tensor, targets: torch.Tensor) -> float:
    losses = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        losses.append(math.log(sum(math.exp(value) for value in row)) - row[target])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("term", [augmentation_prediction_loss, relative_position_loss])
def test_cross_entropy_equals_a_plain_loop(term):
    logits, targets = normal(8, 8), torch.tensor([7, 0, 3, 3, 1, 6, 2, 4])
    assert term(logits, targets).item() == pytest.approx(cross_entropy_by_loop(logits, targets))


def test_augmentation_head_is_linear_and_trained():
    head, features = AugmentationPrediction(6, 4).double(), normal(9, 6).requires_grad_()
    logits = features @ head.head.weight.T + head.head.bias
    loss = head(features, CLASSES)
    assert loss.item() == pytest.approx(cross_entropy_by_loop(logits, CLASSES))
    loss.backward()
    assert head.head.weight.grad.abs().sum() > 0
    assert features.grad.abs().sum() > 0


def test_position_head_tells_patch_from_neighbour():
    head, patch, neighbour = RelativePosition(6).double(), normal(5, 6), normal(5, 6, seed=1)
    positions = torch.tensor([0, 7, 3, 3, 1])
    logits = head.head(torch.cat([patch, neighbour], dim=1))
    assert logits.shape == (5, 8)
    assert head(patch, neighbour, positions).item() == pytest.approx(cross_entropy_by_loop(logits, positions))
    assert head(neighbour, patch, positions).item() != pytest.approx(head(patch, neighbour, positions).item())


# The dense term


def test_nearest_distance_equals_a_plain_loop():
    queries, bank = normal(6, 4), normal(10, 4, seed=1)
    query_images, bank_images = torch.tensor([0, 0, 1, 1, 2, 9]), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0, 1])
    found = nearest_normal_distance(queries, query_images, bank, bank_images)
    for i, q in enumerate(queries.tolist()):
        others = [b for b, image in zip(bank.tolist(), bank_images, strict=True) if image != query_images[i]]
        assert found[i].item() == pytest.approx(min(math.dist(q, b) for b in others))


def test_nearest_patch_of_the_own_image_does_not_count():
    query, bank = torch.zeros(1, 2), torch.tensor([[0.0, 0.1], [3.0, 4.0]])
    own = torch.tensor([5])
    assert nearest_normal_distance(query, own, bank, torch.tensor([5, 6])).item() == pytest.approx(5)
    assert nearest_normal_distance(query, own, bank, torch.tensor([6, 5])).item() == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distance_of_large_features_in_16_bits_does_not_overflow(dtype):
    query, bank = (300 * normal(3, 64, seed=seed).to(dtype) for seed in (0, 1))
    owners = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    found = nearest_normal_distance(query, owners[0], bank, owners[1])
    assert found.dtype == torch.float32
    exact = nearest_normal_distance(query.double(), owners[0], bank.double(), owners[1])
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=0)


def test_distance_is_infinite_without_another_image():
    distance = nearest_normal_distance(normal(2, 3), torch.tensor([0, 1]), normal(4, 3), torch.zeros(4))
    assert distance.isinf().tolist() == [True, False]


def test_gradient_of_a_distance_of_zero_is_zero():
    query = torch.ones(1, 3, requires_grad=True)
    nearest_normal_distance(query, torch.tensor([0]), torch.ones(2, 3), torch.tensor([1, 1])).sum().backward()
    assert query.grad.abs().sum() == 0


def test_margin_loss_equals_a_plain_loop():
    lesion, other = normal(5).abs(), normal(7, seed=1).abs()
    unit_distance = other.mean().item()
    terms = []
    for s, n in itertools.product(lesion.tolist(), other.tolist()):
        gap = (s - n) / unit_distance
        terms.append(0.3 * math.log(1 + math.exp(-(gap - 0.6) / 0.3)))
    assert lesion_margin_loss(lesion, other, 0.6, 0.3).item() == pytest.approx(sum(terms) / 35)


def test_margin_loss_tends_to_the_hinge():
    lesion, other = torch.tensor([2.0]), torch.tensor([1.0, 1.0])
    assert lesion_margin_loss(lesion, other, 1.4, 1e-3).item() == pytest.approx(0.4, abs=1e-5)
    assert lesion_margin_loss(lesion, other, 0.9, 1e-3).item() == pytest.approx(0, abs=1e-5)


def test_margin_loss_does_not_depend_on_the_unit_of_distance():
    lesion, other = normal(5).abs(), normal(7, seed=1).abs()
    small, large = (lesion_margin_loss(factor * lesion, factor * other).item() for factor in (1, 50))
    assert small == pytest.approx(large)


@pytest.mark.parametrize(("lesions", "others"), [(0, 4), (4, 0), (0, 0)])
def test_margin_loss_of_an_empty_set_is_zero(lesions, others):
    lesion, other = normal(lesions).abs().requires_grad_(), normal(others).abs().requires_grad_()
    loss = lesion_margin_loss(lesion, other)
    loss.backward()
    assert loss == 0
    assert lesion.grad.abs().sum() + other.grad.abs().sum() == 0


def lesion_maps(distance: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give maps of 8 x 8 patches of four images: two normal ones, and two with a lesion that lies off normality."""
    features = 0.1 * normal(4, 3, 8, 8)
    masks = torch.zeros(4, 1, 32, 32)
    masks[2:, :, :16, :16] = 1
    features[2:, 0, :4, :4] += distance
    return features, masks, torch.arange(4)


def test_dense_loss_falls_as_lesions_move_away_from_normality():
    term = DenseLesion()
    near, middle, far = (term(*lesion_maps(distance)).item() for distance in (0, 0.2, 3))
    assert near > middle > far
    assert far < 0.02


def test_dense_gradient_drives_lesions_away():
    features, masks, images = lesion_maps(0.2)
    features.requires_grad_()
    DenseLesion()(features, masks, images).backward()
    assert features.grad[2:, 0, :3, :3].mean() < 0
    assert features.grad[:2].abs().sum() > 0  # the bank is trained as well


def test_dense_loss_equals_its_parts():
    features, masks, images = lesion_maps(0.3)
    patches = F.avg_pool2d(features, 3, 1, 1).movedim(1, -1)
    owner = images[:, None, None].expand(4, 8, 8)
    lesion = torch.zeros(4, 8, 8, dtype=torch.bool)
    lesion[2:, :4, :4] = True
    rest = ~lesion & (owner >= 2)
    bank = owner < 2
    distances = [
        nearest_normal_distance(patches[rows], owner[rows], patches[bank], owner[bank]) for rows in (lesion, rest)
    ]
    expected = lesion_margin_loss(*distances, margin=0.7, temperature=0.4)
    assert DenseLesion(0.7, 0.4)(features, masks, images).item() == pytest.approx(expected.item())


def test_dense_loss_leaves_out_patches_that_are_half_lesion():
    features, masks, images = lesion_maps(0.2)
    masks[2:, :, 16::2, 16:] = 1  # every other row: one half of each patch
    before = DenseLesion()(features, masks, images).item()
    features[2:, :, 6, 6] += 100  # its averages of 3 x 3 touch none but such patches
    assert DenseLesion()(features, masks, images).item() == pytest.approx(before)


def test_dense_search_is_limited():
    features, masks, images = lesion_maps(0.2)
    features.requires_grad_()
    DenseLesion(queries=1, bank=1)(features, masks, images).backward()
    assert (features.grad[:2].abs().sum(dim=1) > 0).sum() <= 9  # one patch, averaged 3 x 3
    assert (features.grad[2:].abs().sum(dim=1) > 0).sum() <= 18


@pytest.mark.parametrize(
    "lesion",
    [(slice(0, 0), 0), (slice(0, 4), 16), (slice(2, 4), 2), (slice(2, 4), 32)],
    ids=["no lesion", "no normal image", "lesions smaller than a patch", "lesions all over"],
)
def test_dense_loss_without_comparison_is_zero_and_can_be_trained(lesion):
    features, masks, images = lesion_maps(1.0)
    marked, side = lesion
    masks = torch.zeros_like(masks)
    masks[marked, :, :side, :side] = 1
    features.requires_grad_()
    loss = DenseLesion()(features, masks, images)
    loss.backward()
    assert loss == 0
    assert features.grad.abs().sum() == 0


def test_dense_loss_does_not_compare_views_of_one_image():
    features, masks, _ = lesion_maps(1.0)
    assert DenseLesion()(features, masks, torch.zeros(4, dtype=torch.long)) == 0


# Gradients


@pytest.mark.parametrize(
    ("term", "shape"),
    [
        (lambda z: multi_centring_loss(z, CLASSES, normal(4, 6, seed=1), 1.5), (9, 6)),
        (lambda z: class_centred(z, CLASSES, normal(4, 6, seed=1)), (9, 6)),
        (lambda z: class_centres(z, CLASSES, 4), (9, 6)),
        (lambda z: contrastive_loss(z, CLASSES), (9, 6)),
        (lambda z: contrastive_loss(z, CLASSES, positives="image", images=IMAGES), (9, 6)),
        (lambda z: MsaclContrastive()(z, CLASSES, normal(4, 6, seed=1)), (9, 6)),
        (lambda z: augmentation_prediction_loss(z, CLASSES), (9, 6)),
        (lambda z: relative_position_loss(z, torch.arange(8)), (8, 8)),
        (lambda z: nearest_normal_distance(z[:4], IMAGES[:4], z[4:], IMAGES[4:]), (9, 6)),
    ],
    ids=["centring", "centred", "centres", "class", "image", "module", "augmentation", "position", "nearest"],
)
def test_gradient_equals_finite_differences(term, shape):
    assert torch.autograd.gradcheck(term, normal(*shape, seed=2).requires_grad_())


def test_gradient_of_the_margin_holds_the_unit_fixed():
    lesion, other = normal(4).abs(), normal(5, seed=1).abs()
    assert torch.autograd.gradcheck(lambda s: lesion_margin_loss(s, other), lesion.clone().requires_grad_())
    # As the unit is detached, moving all normal distances equals moving all lesion distances the other way.
    lesion.requires_grad_()
    other.requires_grad_()
    lesion_margin_loss(lesion, other).backward()
    assert other.grad.sum().item() == pytest.approx(-lesion.grad.sum().item())
