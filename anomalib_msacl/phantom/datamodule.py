"""Small rendered phantom images with exactly known lesions, for trying things out without any data.

The images only look like photographs of the eye's fundus, brain slices and chest radiographs. They carry no medical
meaning.
"""

import re
from pathlib import Path

from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_msacl.data.medmix_split import MedMixSplit
from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.paths import at_home
from anomalib_msacl.phantom.rendering import ANATOMIES, MASK_FOLDER, Settings, render_set

_OURS = re.compile(rf"({'|'.join(ANATOMIES)})-[0-9a-f]{{10}}")  # name of a rendered set


class Phantom(MedMixSplit, Folder):
    """Phantom images, rendered within seconds into a cache folder and read from there.

    The same settings give the same files, and image k of a subset does not depend on how many images are asked for.
    Training images are normal; the test images have 1 to 3 lesions each in their second half, with exact masks.

    Args:
        kind: What the images look like: ``fundus``, ``brain`` or ``chest``.
        root: Cache folder; each set of settings gets a folder of its own there. New sets are only written to a folder
            that is missing, empty, or holds nothing but such sets.
        image_size: Side of the square images in pixels, at least 64.
        train_images: Number of training images, at least 1.
        test_images: Number of test images, at least 4; half of them, rounded down, have lesions.
        seed: Seed of the rendering and of the validation split, 0 or above.
        train_batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Number of data loading processes, 0 for none.
        train_augmentations: Augmentations of the training images.
        val_augmentations: Augmentations of the validation images.
        test_augmentations: Augmentations of the test images.
        augmentations: Augmentations where none are given for a subset.
        val_split_mode: As in anomalib, or ``medmix``; see :class:`anomalib_msacl.data.MedMixSplit`.
        val_split_ratio: Part of the images that goes to the validation set, between 0 and 1.

    Raises:
        InputError: When a setting is outside of its range, or, from ``prepare_data()`` and ``setup()``, when ``root``
            cannot be written to or holds files of others.

    Example:
        >>> Phantom(kind="brain", root="cache").name
        'phantom_brain'
    """

    def __init__(
        self,
        kind: str = "fundus",
        root: str | Path = "./datasets/phantom",
        *,
        image_size: int = 128,
        train_images: int = 100,
        test_images: int = 120,
        seed: int = 0,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TEST,
        val_split_ratio: float = 0.5,
    ) -> None:
        """Keep the settings; the class describes them."""
        self.settings = Settings(kind, image_size, train_images, test_images, seed)
        super().__init__(
            name=f"phantom_{kind}",
            root=at_home(root) / f"{kind}-{self.settings.key}",
            normal_dir="train/good",
            normal_test_dir="test/good",
            abnormal_dir="test/lesion",
            mask_dir=MASK_FOLDER,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )

    def prepare_data(self) -> None:
        """Render the images, unless a run with the same settings has done so.

        Raises:
            InputError: When the images cannot be written, or the cache folder holds files of others.
        """
        target = Path(str(self.root))
        if target.is_dir():
            return
        try:
            _check_cache(target.parent)
            render_set(self.settings, target)
        except OSError as error:
            raise InputError(
                f"cannot write phantom images to '{target}' ({error.strerror}): set root to a folder that can be "
                "written to",
            ) from error

    def read_data(self) -> None:
        """Read the images, rendering them first where ``prepare_data`` was not called."""
        self.prepare_data()
        super().read_data()


def _check_cache(folder: Path) -> None:
    """Raise :class:`InputError` where a folder holds anything but rendered sets; hidden files do not count."""
    if not folder.exists():
        return
    others = sorted(
        entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and not _OURS.fullmatch(entry.name)
    )
    if others:
        raise InputError(
            f"the root '{folder}' of the phantom images holds files of others, {name_some(others)}: set root to an "
            "empty or new folder; to read your own images, use CheckedFolder or MedicalFolder as the datamodule"
        )
