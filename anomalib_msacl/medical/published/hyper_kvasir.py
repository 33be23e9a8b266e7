"""Hyper-Kvasir: colonoscopy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data.utils import LabelName, Split

from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.medical.published.base import PublishedData
from anomalib_msacl.medical.table import File


class HyperKvasir(PublishedData):
    """Hyper-Kvasir: colonoscopy, polyps with masks (CC BY 4.0; datasets.simula.no/hyper-kvasir, osf.io/mh9sj).

    Images of the classes cecum, ileum and bbps-2-3 are normal, those of the segmented part abnormal. CCD and PMSACL
    report 1,600 normal training images, and 500 normal and 1,000 abnormal test images; which ones is not published,
    so they are drawn by ``seed``. There are no patient ids, so images of a patient can be on both sides.

    Args:
        root: Folder with ``labeled-images`` and ``segmented-images``.
        normal_classes: Folders of normal classes.
        train_normal: Number of normal training images.
        test_normal: Number of normal test images.
        hide_inset: Black out the green or blue box that shows the position of the endoscope: it is a shortcut.
        **kwargs: As in :class:`PublishedData`.

    Raises:
        InputError: From ``setup()`` if files are missing.
    """

    title = "Hyper-Kvasir"
    origin = "https://datasets.simula.no/hyper-kvasir or https://osf.io/mh9sj"
    layout = "labeled-images/**/{cecum,ileum,bbps-2-3}/*.jpg and segmented-images/{images,masks}/*.jpg"

    def __init__(
        self,
        root: str | Path = "./datasets/hyper-kvasir",
        normal_classes: Sequence[str] = ("cecum", "ileum", "bbps-2-3"),
        train_normal: int = 1600,
        test_normal: int = 500,
        hide_inset: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.normal_classes = list(normal_classes)
        self.train_normal = train_normal
        self.test_normal = test_normal
        self.reader.hide_inset = hide_inset

    def list_files(self) -> list[File]:
        """Return normal images of the labelled part, and images and masks of the segmented part."""
        normal = [path for name in self.normal_classes for path in self.images(f"labeled-images/**/{name}")]
        polyps, masks = self._by_place("images"), self._by_place("masks")
        without = [str(path) for place, path in polyps.items() if place not in masks]
        if without:
            raise self.missing(f"no mask in segmented-images/masks for {name_some(without)}")
        files = self.normal_files(normal, self.train_normal, self.test_normal)
        return files + [File(path, LabelName.ABNORMAL, Split.TEST, masks[place]) for place, path in polyps.items()]

    def _by_place(self, name: str) -> dict[str, Path]:
        """Return the files of a folder of the segmented part by their paths in it, without extension.

        Raises:
            InputError: If there are none, or two of them have one: they would share a mask.
        """
        folder = f"segmented-images/{name}"
        found: dict[str, Path] = {}
        for path in self.images(folder):
            place = path.relative_to(self.root / folder).with_suffix("").as_posix()
            if place in found:
                raise InputError(
                    f"{self.title}: {found[place]} and {path.name} have one name, by which images and masks pair up: "
                    "rename or remove one of them"
                )
            found[place] = path
        return found
