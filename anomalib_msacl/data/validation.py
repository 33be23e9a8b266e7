"""``MedMixValidation``: the MedMix validation split for any datamodule of anomalib."""

from __future__ import annotations

import logging
from pathlib import Path

from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName, ValSplitMode
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_msacl.data.lending import give_back, remember
from anomalib_msacl.data.medmix_dataset import MedMixDataset
from anomalib_msacl.data.medmix_split import hold_out_with_lesions
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import MedMix

logger = logging.getLogger(__name__)

_OPEN_SPLITS = (ValSplitMode.NONE, ValSplitMode.SAME_AS_TEST, ValSplitMode.FROM_DIR)


class MedMixValidation(Callback):
    """Validate on held-out normal training images with MedMix lesions: no abnormal image is needed.

    For any datamodule of anomalib that reads image files. Set its ``val_split_mode`` to ``none``.

    Args:
        ratio: Part of the training images, or of their patients where they are known, that is held out, between 0
            and 1.
        share: Part of the held-out images that gets lesions, between 0 and 1.
        seed: Decides which images are held out, which get lesions, and what the lesions are.
        medmix: How lesions look; the numbers of its ``counts`` that are above 0 take turns.
        cache: Folder in which the images with lesions stay and are used again; a temporary one, removed at the end, if
            None.

    Raises:
        InputError: If the datamodule has already given images away for validation, or has too few.
    """

    def __init__(
        self,
        ratio: float = 0.2,
        share: float = 0.5,
        seed: int = 0,
        medmix: MedMix | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.ratio = ratio
        self.share = share
        self.seed = seed
        self.medmix = medmix
        self.cache = cache

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the validation set, once, before the model looks at the data."""
        del pl_module
        datamodule = getattr(trainer, "datamodule", None)
        if stage not in {"fit", "validate"} or isinstance(getattr(datamodule, "val_data", None), MedMixDataset):
            return
        if not isinstance(datamodule, AnomalibDataModule) or not isinstance(datamodule.train_data, AnomalibDataset):
            raise InputError(
                f"MedMixValidation needs an image datamodule of anomalib, but got {type(datamodule).__name__}: pass "
                "datamodule=... to the engine"
            )
        if datamodule.val_split_mode not in _OPEN_SPLITS:
            raise InputError(
                f"MedMixValidation makes the validation set, but the datamodule has val_split_mode "
                f"{datamodule.val_split_mode.value} and has given images away for one: set val_split_mode to none"
            )
        remember(datamodule)
        hold_out_with_lesions(datamodule, self.ratio, self.share, self.seed, self.medmix, self.cache)
        datamodule.setup(trainer.state.fn)  # set up already: this only hands the augmentations to the new set
        lesions = int((datamodule.val_data.samples.label_index == LabelName.ABNORMAL).sum())
        logger.info(
            "MedMixValidation: %d of %d held-out normal images have MedMix lesions; %d are left for training.",
            *(lesions, len(datamodule.val_data), len(datamodule.train_data)),
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back to the datamodule."""
        del pl_module, stage
        give_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the images back where the fit has failed."""
        del pl_module, exception
        give_back(trainer)
