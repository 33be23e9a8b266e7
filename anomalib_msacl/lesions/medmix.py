"""MedMix: the lesions of the paper as a transform."""

from __future__ import annotations

from collections.abc import Sequence

from anomalib_msacl.lesions.mixture import LesionMixture
from anomalib_msacl.lesions.patches import Patch
from anomalib_msacl.lesions.randomness import Range


class MedMix(LesionMixture):
    """Paste deformed patches of normal images into normal images (MSACL, arXiv 2109.01303).

    A :class:`LesionMixture` of the one family :class:`Patch`, whose arguments it takes. Lengths are relative to the
    shorter side of the image. A pair ``(low, high)`` is drawn uniformly, ``radius`` and ``gamma`` log-uniformly;
    brightness and fisheye get a random sign.

    Args:
        counts: Numbers of lesions, one of which is drawn for each image whose number is not given.
        radius: Mean radius of a lesion, relative to the shorter side.
        aspect: Long axis over short axis of the ellipse.
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .5].
        edge: Width of the soft edge inside the outline, relative to the radius, in (0, 1].
        opacity: Weight of the pasted patch, in (0, 1].
        brightness: Magnitude of the change of intensity, images being in [0, 1].
        contrast: Factor of the contrast.
        saturation: Factor of the saturation. Grey images stay grey.
        hue: Turn of the hue in degrees, RGB images only.
        gamma: Exponent of the non-linear change of intensity, drawn log-uniformly.
        noise: Standard deviation of Gaussian noise.
        fisheye: Magnitude of the radial distortion, 0 is none, in [0, .9].
        wave: Amplitude of the horizontal wave, relative to the radius.
        other_image: Probability that a patch comes from another image of the batch rather than from the same.
        keep_on_foreground: Place lesions on tissue and cut their patches there; see
            :func:`anomalib_msacl.lesions.foreground.foreground`.
        foreground_threshold: Intensity above which a pixel is tissue, in [0, 1]; a plain background of another colour
            is left out too.
        return_mask: Return ``(images, masks)`` when called.
        visible: Change of intensity that is visible; see :class:`LesionMixture`.

    Raises:
        InputError: If a range is out of bounds.

    Example:
        >>> import torch
        >>> images = torch.rand(4, 3, 64, 64)
        >>> output = MedMix().synthesize(images, counts=torch.tensor([0, 1, 2, 3]))
        >>> output.image.shape, output.mask.shape, output.count.tolist()
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 1, 64, 64]), [0, 1, 2, 3])
    """

    def __init__(
        self,
        counts: Sequence[int] = (0, 1, 2, 3),
        radius: Range = (0.05, 0.16),
        aspect: Range = (1.0, 1.8),
        irregularity: float = 0.25,
        edge: Range = (0.2, 0.6),
        opacity: Range = (0.6, 1.0),
        brightness: Range = (0.05, 0.3),
        contrast: Range = (0.5, 1.5),
        saturation: Range = (0.5, 1.5),
        hue: Range = (-20.0, 20.0),
        gamma: Range = (0.7, 1.4),
        noise: Range = (0.0, 0.06),
        fisheye: Range = (0.0, 0.6),
        wave: Range = (0.0, 0.2),
        other_image: float = 0.5,
        keep_on_foreground: bool = True,
        foreground_threshold: float = 0.08,
        return_mask: bool = False,
        visible: float = 0.02,
    ) -> None:
        patch = Patch(
            radius=radius,
            aspect=aspect,
            irregularity=irregularity,
            edge=edge,
            opacity=opacity,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            gamma=gamma,
            noise=noise,
            fisheye=fisheye,
            wave=wave,
            other_image=other_image,
        )
        super().__init__([patch], counts, keep_on_foreground, foreground_threshold, visible, return_mask)

    def among(self, families: Sequence[str]) -> LesionMixture:
        """Return a mixture of the named families, its patches, places and counts as they are set here."""
        configured = {family.name: family for family in self.families}
        return LesionMixture(
            [configured.get(name, name) for name in families],
            self.counts,
            self.keep_on_foreground,
            self.foreground_threshold,
            self.visible,
            self.return_mask,
        )
