"""The thresholds that belong to a stage of the training, where not the last one is kept."""

from __future__ import annotations

import logging
from typing import Any

from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor

from anomalib_msacl.backbone.tensors import StateDict, copy_of
from anomalib_msacl.compat import undecided
from anomalib_msacl.thresholds import NormalsThreshold

logger = logging.getLogger(__name__)

_OTHERS = ""  # stages that were validated and not compared


class StageThresholds:
    """What the validations have set in the post-processor, stage by stage.

    A callback such as ``EarlyStopping`` ends a training behind its last validation. The thresholds are those of the
    last stage then, and an earlier one may be kept.
    """

    def __init__(self) -> None:
        self._found: dict[str, StateDict] = {}

    def keep(self, module: AnomalibModule, stage: str | None) -> None:
        """Keep what a validation has set.

        Args:
            module: At the end of a validation.
            stage: Name of the stage; None where it is none that can be chosen.
        """
        if isinstance(module.post_processor, PostProcessor):
            self._found[stage or _OTHERS] = copy_of(module.post_processor)

    def restore(self, module: AnomalibModule, stage: str) -> None:
        """Set what belongs to a stage: nothing where it was never validated. A later validation sets it anew.

        Args:
            module: Has the weights of the stage.
            stage: Its name.
        """
        callbacks: list[Any] = getattr(module.trainer, "callbacks", [])
        for callback in callbacks:
            if isinstance(callback, NormalsThreshold):
                callback.stale = True
        post = module.post_processor
        if not self._found or not isinstance(post, PostProcessor):  # no validation has set anything
            return
        if stage in self._found:
            post.load_state_dict(self._found[stage])
        else:
            for buffer in dict(post.named_buffers(recurse=False)).values():
                buffer.fill_(float("nan"))

    def tell_missing(self, module: AnomalibModule, stage: str | None) -> None:
        """Warn where a training with validations has left no threshold.

        Args:
            module: After its fit.
            stage: Name of the stage that was kept; None if there was no choice.
        """
        if self._found and stage is not None and undecided(module):
            logger.warning(
                "Igd: no validation came after %s, which is kept, so that the scores have no threshold; set "
                "trainer.check_val_every_n_epoch to 1, or set thresholds by NormalsThreshold.",
                stage,
            )

    def state_dict(self) -> dict[str, StateDict]:
        """Return plain data and tensors."""
        return dict(self._found)

    def load_state_dict(self, state: dict[str, StateDict]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._found = dict(state)
