"""What is unusual about whole images, against plain loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.detectors.msacl.whole_images import WholeImages, channel_spread


def fitted(spread: torch.Tensor, pooled: torch.Tensor) -> WholeImages:
    whole = WholeImages()
    whole.fit(spread, pooled)
    return whole


def test_the_spread_is_that_of_each_channel_over_the_image() -> None:
    maps = torch.rand(2, 3, 4, 5)
    found = channel_spread(maps)
    for image in range(2):
        for channel in range(3):
            assert found[image, channel].item() == pytest.approx(np.std(maps[image, channel].numpy()), abs=1e-6)
    assert torch.equal(channel_spread(torch.rand(2, 3, 1, 1)), torch.zeros(2, 3))


def test_its_distance_is_that_of_mahalanobis_with_a_tenth_of_the_mean_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(40, 5, generator=generator) * torch.tensor([1.0, 2.0, 0.1, 0.5, 3.0])
    spread[:, 1] += spread[:, 0]
    found = fitted(spread, torch.rand(40, 4))(spread[:7] + 0.3, torch.rand(7, 4))[:, 0]
    mean = spread.double().numpy().mean(axis=0)
    covariance = np.cov(spread.double().numpy().T, bias=True)
    ridge = 0.1 * np.trace(covariance) / 5 + (1e-3 * mean.mean()) ** 2
    inverse = np.linalg.inv(covariance + ridge * np.eye(5))
    for row, distance in zip((spread[:7] + 0.3).double().numpy(), found, strict=True):
        assert float(distance) == pytest.approx(np.sqrt((row - mean) @ inverse @ (row - mean)), rel=1e-4)


def test_neighbours_are_the_three_nearest_by_direction() -> None:
    bank, asked = torch.randn(30, 6), torch.randn(4, 6)
    index = NearestNeighbors(n_neighbors=3).fit(F.normalize(bank, dim=1).numpy())
    expected = index.kneighbors(F.normalize(asked, dim=1).numpy())[0].mean(axis=1)
    whole = fitted(torch.rand(30, 2), bank)
    assert whole(torch.rand(4, 2), asked)[:, 1].numpy() == pytest.approx(expected, abs=1e-3)
    scaled = whole(torch.rand(4, 2), 10 * asked)[:, 1]
    assert scaled.numpy() == pytest.approx(expected, abs=1e-3)


def test_fewer_images_than_neighbours_or_channels_still_order_what_is_farther() -> None:
    for images in (1, 2):
        spread = torch.rand(1, 8).repeat(images, 1)
        whole = fitted(spread, torch.rand(images, 4))
        near, far = (whole(spread[:1] * factor, torch.rand(1, 4))[0, 0].item() for factor in (1.1, 1.5))
        assert 0 < near < far < float("inf")
