"""Images that callbacks take out of a datamodule for one fit, and give back after it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from anomalib.data import AnomalibDataModule

_PARTS = ("train_data", "val_data")
_BEFORE: WeakKeyDictionary[AnomalibDataModule, dict[str, Any]] = WeakKeyDictionary()


def remember(datamodule: AnomalibDataModule) -> None:
    """Keep the training and validation images of a datamodule, before a callback changes them; the first call counts.

    Args:
        datamodule: Set up.
    """
    _BEFORE.setdefault(datamodule, {name: vars(datamodule)[name] for name in _PARTS if name in vars(datamodule)})


def give_back(trainer: Any) -> None:
    """Let the datamodule of a trainer be as it was before callbacks changed it: the next model may want all images.

    Where several callbacks have changed it, the first one that gives back does so for all.

    Args:
        trainer: Of Lightning, with or without a datamodule.
    """
    datamodule = getattr(trainer, "datamodule", None)
    before = _BEFORE.pop(datamodule, None) if isinstance(datamodule, AnomalibDataModule) else None
    if before is None:
        return
    for name in _PARTS:
        if name in before:
            setattr(datamodule, name, before[name])
        else:
            vars(datamodule).pop(name, None)
