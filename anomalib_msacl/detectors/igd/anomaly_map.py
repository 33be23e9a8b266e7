"""Patches of images, and how what is said of them becomes one score and one map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_LOCAL = 0.5  # beta of the paper: the share of the local part


class PatchGrid(nn.Module):
    """Square patches at regular places of an image.

    Args:
        side: Side of a patch in pixels.
        stride: Distance of neighbours in pixels.
    """

    def __init__(self, side: int, stride: int) -> None:
        super().__init__()
        self.side, self.stride = side, stride

    def cut(self, images: Tensor) -> Tensor:
        """Return all patches of images ``(B, C, H, W)``, row by row, shape ``(B, P, C, side, side)``."""
        columns = F.unfold(images, self.side, stride=self.stride)
        rows = columns.transpose(1, 2)
        return rows.reshape(*rows.shape[:2], images.shape[1], self.side, self.side)

    def join(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps of whole images, patches that overlap averaged.

        Args:
            patches: As from :meth:`cut`, of one channel, shape ``(B, P, 1, side, side)``.
            size: Height and width of the images.

        Returns:
            Shape ``(B, 1, H, W)``.
        """
        columns = patches.flatten(2).transpose(1, 2)
        total, number = (
            F.fold(values, size, self.side, stride=self.stride) for values in (columns, columns.new_ones(columns.shape))
        )
        return total / number


def joint_score(of_whole: Tensor, of_patches: Tensor | None) -> Tensor:
    """Return the score of images: the mean of that of the whole and that of the most anomalous patch.

    Args:
        of_whole: Shape ``(B,)``.
        of_patches: Shape ``(B, P)``; None without a local part.

    Returns:
        Shape ``(B,)``.
    """
    return of_whole if of_patches is None else (1 - _LOCAL) * of_whole + _LOCAL * of_patches.amax(dim=1)


def joint_map(of_whole: Tensor, of_patches: Tensor | None) -> Tensor:
    """Return the mean of two maps ``(B, 1, H, W)``; the first where there is no second."""
    return of_whole if of_patches is None else (1 - _LOCAL) * of_whole + _LOCAL * of_patches
