"""The terms of IGD against their formulas as plain loops, against torchmetrics, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from anomalib_msacl import InputError
from anomalib_msacl.detectors.igd import similarity as terms_of_similarity
from anomalib_msacl.detectors.igd.anomaly_map import PatchGrid, joint_map, joint_score
from anomalib_msacl.detectors.igd.gaussian import GaussianClassifier, centre_of, sigma_of
from anomalib_msacl.detectors.igd.losses import (
    blend,
    critic_loss,
    gaussian_loss,
    interpolate,
    interpolation_loss,
    loss_and_map,
    reconstruction_loss,
)
from anomalib_msacl.detectors.igd.similarity import Similarity, ssim
from tests.unit.lesions.pictures import seeded, smooth


def pair(number: int, side: int) -> tuple[Tensor, Tensor]:
    """Images and what a decoder may make of them."""
    images = smooth(number, side, side).double()
    noise = torch.rand(images.shape, generator=seeded(), dtype=torch.float64)
    return images, (0.8 * images + 0.15 * noise).clamp(0, 1)


def descriptors(number: int, dim: int = 4) -> Tensor:
    return torch.randn(number, dim, generator=seeded(), dtype=torch.float64)


@pytest.mark.parametrize(("side", "scales"), [(64, 3), (128, 4), (256, 5)])
def test_ms_ssim_is_that_of_torchmetrics(side: int, scales: int) -> None:
    images, others = (one[:, :1] for one in pair(1, side))
    similarity = Similarity.for_size(side, 11)
    assert len(similarity.weights) == scales
    expected = multiscale_structural_similarity_index_measure(
        others, images, reduction=None, data_range=1.0, betas=similarity.weights
    )
    torch.testing.assert_close(similarity.of_images(others, images), expected)
    with pytest.raises(ValueError, match=r"must be larger than"):  # one scale more
        multiscale_structural_similarity_index_measure(others, images, betas=(*similarity.weights, 0.1))


def test_the_scales_of_the_paper_are_those_of_its_sizes() -> None:
    paper = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), (0.0516, 0.3295, 0.3463, 0.2726)
    for (side, window), weights in zip([(256, 11), (32, 3)], paper, strict=True):
        assert Similarity.for_size(side, window).weights == pytest.approx(weights, abs=2e-4)
    with pytest.raises(InputError, match=r"images of 10 pixels are smaller than the window of 11"):
        Similarity.for_size(10, 11)


def test_ssim_around_a_pixel_is_that_of_torchmetrics() -> None:
    images, others = pair(2, 32)
    _, expected = structural_similarity_index_measure(others, images, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(ssim(others, images, 11)[0], expected)


def test_ssim_of_the_small_window_is_its_formula() -> None:
    (image,), (other,) = pair(1, 8)
    kernel = [math.exp(-(step**2) / 4.5) for step in (-1, 0, 1)]
    total = sum(kernel)
    found = ssim(other[None], image[None], 3)
    for channel, y, x in [(0, 3, 4), (1, 1, 6), (2, 6, 1)]:
        moments = [0.0] * 5
        for i in range(3):
            for j in range(3):
                weight = kernel[i] * kernel[j] / total**2
                a, b = float(other[channel, y + i - 1, x + j - 1]), float(image[channel, y + i - 1, x + j - 1])
                values = (a, b, a * a, b * b, a * b)
                moments = [sum_ + weight * value for sum_, value in zip(moments, values, strict=True)]
        m1, m2, s1, s2, p = moments
        contrast = (2 * (p - m1 * m2) + 0.03**2) / (s1 - m1**2 + s2 - m2**2 + 0.03**2)
        luminance = (2 * m1 * m2 + 0.01**2) / (m1**2 + m2**2 + 0.01**2)
        assert float(found[1][0, channel, y, x]) == pytest.approx(contrast)
        assert float(found[0][0, channel, y, x]) == pytest.approx(luminance * contrast)


def test_reconstruction_is_its_formula() -> None:
    images, others = pair(3, 32)
    similarity = Similarity.for_size(32, 3)
    alike = similarity.of_images(others, images)
    expected = []
    for index in range(3):
        pixels = zip(images[index].flatten().tolist(), others[index].flatten().tolist(), strict=True)
        differences = [abs(one - other) for one, other in pixels]
        expected.append(0.85 * (1 - float(alike[index])) + 0.15 * sum(differences) / len(differences))
    assert reconstruction_loss(images, others, similarity).tolist() == pytest.approx(expected)
    torch.testing.assert_close(reconstruction_loss(images, images, similarity), torch.zeros(3, dtype=torch.float64))


def test_loss_and_map_compare_each_scale_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, others = pair(2, 64)
    similarity = Similarity.for_size(64, 11)
    expected = reconstruction_loss(images, others, similarity)
    difference = (images - others).abs().mean(dim=1, keepdim=True)
    plane = 0.85 * (1 - similarity.of_pixels(others, images)) + 0.15 * difference
    sides: list[int] = []
    monkeypatch.setattr(terms_of_similarity, "ssim", lambda *args: sides.append(args[0].shape[-1]) or ssim(*args))
    loss, found = loss_and_map(images, others, similarity)
    assert torch.equal(loss, expected)
    torch.testing.assert_close(found, plane)
    assert sides == [64, 32, 16]


def test_the_difference_is_absolute() -> None:
    """Brighter here and darker there must not cancel, as a signed difference would."""
    image = torch.full((1, 3, 32, 32), 0.5)
    other = image.clone()
    other[..., ::2], other[..., 1::2] = 0.6, 0.4
    similarity = Similarity.for_size(32, 3)
    structure = 0.85 * (1 - similarity.of_images(other, image))
    torch.testing.assert_close(reconstruction_loss(image, other, similarity) - structure, torch.tensor([0.015]))


def test_a_lesion_shows_in_the_residual_map_where_it_is() -> None:
    images = smooth(1, 64)
    other = images.clone()
    other[..., 20:28, 36:44] += 0.3
    plane = loss_and_map(images, other, Similarity.for_size(64, 11))[1][0, 0]
    y, x = divmod(int(plane.argmax()), 64)
    assert 18 <= y < 30
    assert 34 <= x < 46
    assert plane[50:, :14].max() < 0.1 * plane.max()


def test_gaussian_term_is_its_formula() -> None:
    points, centre, sigma = descriptors(5), torch.tensor([0.1, -0.2, 0.3, 0.4]).double(), torch.tensor(1.7).double()
    expected = [
        1 - math.exp(-sum((a - b) ** 2 for a, b in zip(point, centre.tolist(), strict=True)) / 1.7)
        for point in points.tolist()
    ]
    assert gaussian_loss(points, centre, sigma).tolist() == pytest.approx(expected)


def test_interpolations_and_the_terms_of_the_critic_are_their_formulas() -> None:
    points, share = descriptors(4), torch.tensor([0.0, 0.1, 0.3, 0.5]).double()
    for index, point in enumerate(interpolate(points, share).tolist()):
        a = float(share[index])
        expected = [a * one + (1 - a) * other for one, other in zip(points[index], points[3 - index], strict=True)]
        assert point == pytest.approx([float(value) for value in expected])
    said, of_blends = descriptors(4)[:, 0], descriptors(4)[:, 1]
    rows = zip(said.tolist(), share.tolist(), of_blends.tolist(), strict=True)
    expected = [(d - a) ** 2 + b**2 for d, a, b in rows]
    assert critic_loss(said, share, of_blends).tolist() == pytest.approx(expected)
    assert interpolation_loss(said).tolist() == pytest.approx([value**2 for value in said.tolist()])
    images, others = pair(1, 8)
    torch.testing.assert_close(blend(images, others), 0.2 * images + 0.8 * others)


def test_gradients_are_those_of_finite_differences() -> None:
    points = descriptors(3).requires_grad_()
    centre, sigma, share = points.detach()[0] + 0.3, torch.tensor(1.5).double(), torch.tensor([0.1, 0.2, 0.4]).double()
    assert torch.autograd.gradcheck(lambda z: gaussian_loss(z, centre, sigma), points)
    assert torch.autograd.gradcheck(lambda z: interpolate(z, share), points)
    said, of_blends = descriptors(3)[:, 0].requires_grad_(), descriptors(3)[:, 1].requires_grad_()
    assert torch.autograd.gradcheck(lambda d, b: critic_loss(d, share, b) + interpolation_loss(d), (said, of_blends))
    images, _ = pair(1, 12)
    similarity = Similarity.for_size(12, 3)
    assert len(similarity.weights) == 3
    smooth_pair = (images[:, :1], (0.9 * images + 0.05)[:, :1].requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: reconstruction_loss(x, y, similarity), smooth_pair)
    assert torch.autograd.gradcheck(lambda x, y: loss_and_map(x, y, similarity)[1], smooth_pair)


def test_centre_and_deviation_are_their_formulas() -> None:
    batches = [descriptors(4), 3 * descriptors(6), 0.01 * descriptors(2)]
    rows = [row for batch in batches for row in batch.tolist()]
    mean = [sum(row[d] for row in rows) / len(rows) for d in range(4)]
    pushed = [math.copysign(max(abs(value), 0.1), value) for value in mean]
    assert centre_of(torch.cat(batches)).tolist() == pytest.approx(pushed)
    centre = torch.tensor([0.1, -0.1, 0.2, 0.3]).double()
    means = [
        sum(sum((a - b) ** 2 for a, b in zip(row, centre.tolist(), strict=True)) for row in batch.tolist()) / len(batch)
        for batch in batches
    ]
    assert min(means) < 1 < max(means)
    assert float(sigma_of(batches, centre)) == pytest.approx(sum(max(1, each) for each in means) / 3)


def test_the_deviation_is_estimated_before_the_centre_moves() -> None:
    classifier, first, second = GaussianClassifier(4).double(), descriptors(8), descriptors(8) + 2
    classifier.fit([first])
    old = classifier.centre.clone()
    torch.testing.assert_close(classifier.sigma, sigma_of([first], centre_of(first)))
    spread = classifier.fit([second])
    torch.testing.assert_close(classifier.sigma, sigma_of([second], old))
    torch.testing.assert_close(classifier.centre, centre_of(second))
    assert spread == pytest.approx(float((second - second.mean(dim=0)).square().sum(dim=1).mean()))


def test_patches_come_back_where_they_were() -> None:
    grid, images = PatchGrid(16, 8), torch.rand(2, 1, 32, 40, generator=seeded())
    patches = grid.cut(images)
    assert patches.shape == (2, 3 * 4, 1, 16, 16)
    assert torch.equal(patches[1, 4 + 2], images[1, :, 8:24, 16:32])
    torch.testing.assert_close(grid.join(patches, (32, 40)), images)


def test_overlapping_patches_are_averaged() -> None:
    grid = PatchGrid(16, 8)
    values = torch.arange(2.0).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 16, 16)
    row = grid.join(values, (16, 24))[0, 0, 5]
    assert row.tolist() == [0.0] * 8 + [0.5] * 8 + [1.0] * 8


def test_scores_and_maps_join_the_parts_half_and_half() -> None:
    of_whole, of_patches = torch.tensor([0.2, 0.4]), torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.0, 0.2]])
    torch.testing.assert_close(joint_score(of_whole, of_patches), torch.tensor([0.4, 0.3]))
    assert torch.equal(joint_score(of_whole, None), of_whole)
    plane = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(joint_map(plane, plane / 2), 0.75 * plane)
