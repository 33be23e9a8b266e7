"""Every touch of a name that anomalib, Lightning, timm or torch keeps private, or may move.

``tests/unit/test_compat.py`` says what broke when one of them does.
"""

from __future__ import annotations

import copy
import functools
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm.models.vision_transformer
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from lightning.fabric.utilities import rank_zero
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

if TYPE_CHECKING:
    from anomalib.engine import Engine  # slow to import

timm_vit: Any = timm.models.vision_transformer

# The base class of BatchNorm1d, 2d and 3d.
BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001

# What anomalib makes of a transform for exports: a copy whose ``Resize`` has no antialiasing, among other things.
without_antialiasing = get_exportable_transform

_OPSET = 18  # what torch's exporter writes; anomalib asks for 14, which ends in a traceback in the log
_EXPORTING: weakref.WeakSet[Any] = weakref.WeakSet()  # models that are being exported
# Frozen stages are in evaluation mode by intent, curves have few points where there are few images, and those of a run
# that goes on are kept.
_INTENDED = (
    r"Experiment logs directory .* exists and is not empty",
    r"Found \d+ module\(s\) in eval mode",
    r"The number of training batches .* is smaller than the logging interval",
)


@contextmanager
def position_embeddings_without_antialiasing() -> Iterator[None]:
    """Let timm's transformers resample their position embeddings without antialiasing, and undo it afterwards.

    anomalib's ``TimmFeatureExtractor`` switches the antialiasing off for the whole process, for ONNX. Features must be
    the same whether or not such an extractor was ever built.
    """
    original = timm_vit.resample_abs_pos_embed

    @functools.wraps(original)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "antialias": False})

    timm_vit.resample_abs_pos_embed = plain
    try:
        yield
    finally:
        timm_vit.resample_abs_pos_embed = original


@contextmanager
def one_results_folder() -> Iterator[None]:
    """Let the processes of one run write to one results folder, and undo it afterwards.

    anomalib makes a folder ``v0``, ``v1`` ... in each process, and ``latest`` is the last of them: without the weights,
    which the first process saves. The others go by ``latest``; they write when the first has long made its folder.
    """
    from anomalib.engine import engine as module  # noqa: PLC0415  # brings all models along

    engine: Any = module
    original = engine.create_versioned_dir

    @functools.wraps(original)
    def create(root_dir: str | Path) -> Path:
        first = cast("Any", rank_zero_only).rank == 0
        return cast("Path", original(root_dir)) if first else Path(root_dir).resolve() / "latest"

    engine.create_versioned_dir = create
    try:
        yield
    finally:
        engine.create_versioned_dir = original


@contextmanager
def exporting_with(
    exportable: Callable[[Any], Any],
    loaded: Callable[[Any, dict[str, Any]], None],
    written: Callable[[Any, Path], None],
) -> Iterator[None]:
    """Let anomalib export another version of the transforms of its pre-processors, and undo it afterwards.

    Args:
        exportable: Makes that version for ONNX and OpenVINO; torch exports get the transform as it is.
        loaded: Is told each model that is loaded from a checkpoint meanwhile, and the checkpoint.
        written: Is told each model that was exported to ONNX or OpenVINO, and the file.
    """
    from anomalib.models.components.base.anomalib_module import AnomalibModule  # noqa: PLC0415
    from anomalib.models.components.base.export_mixin import ExportMixin  # noqa: PLC0415  # brings all models along

    loads = AnomalibModule.on_load_checkpoint
    versions = {"to_torch": lambda transform: transform, "to_onnx": exportable, "to_openvino": exportable}
    originals = {name: getattr(ExportMixin, name) for name in versions}

    @functools.wraps(loads)
    def load(model: Any, checkpoint: dict[str, Any]) -> None:
        loads(model, checkpoint)
        loaded(model, checkpoint)

    cast("Any", AnomalibModule).on_load_checkpoint = load
    for name, version in versions.items():
        told = (lambda _model, _path: None) if name == "to_torch" else written
        settings = {"opset_version": _OPSET} if name == "to_onnx" else {}
        setattr(ExportMixin, name, _exporting(originals[name], version, told, settings))
    try:
        yield
    finally:
        cast("Any", AnomalibModule).on_load_checkpoint = loads
        for name, original in originals.items():
            setattr(ExportMixin, name, original)


def _exporting(
    export: Callable[..., Any],
    version: Callable[[Any], Any],
    written: Callable[[Any, Path], None],
    settings: dict[str, Any],
) -> Callable[..., Any]:
    """Return a method that exports a model with another version of its transform, and tells it once."""

    @functools.wraps(export)
    def wrapped(model: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {**settings, **kwargs}
        if model in _EXPORTING:  # to_openvino calls to_onnx
            return export(model, *args, **kwargs)
        pre_processor: Any = getattr(model, "pre_processor", None)
        transform, usual = (getattr(pre_processor, name, None) for name in ("transform", "export_transform"))
        replaced = transform is not None and usual is not None  # else there is nothing to replace
        if replaced:
            pre_processor.export_transform = version(transform)
        _EXPORTING.add(model)
        try:
            with nullcontext() if export.__name__ == "to_torch" else _traceable(model):
                file = export(model, *args, **kwargs)
        finally:
            _EXPORTING.discard(model)
            if replaced:
                pre_processor.export_transform = usual
        written(model, Path(file))
        return file

    return wrapped


class _Unlimited:
    """A number that is as large as any other, symbols of an export too: what compares itself with one asks it."""

    def __ge__(self, _: object) -> bool:
        return True


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Let activations compute out of place and PatchCore search for all patches at once, which changes no value.

    In place, torch takes twice as long to trace an EfficientNet. PatchCore searches for 1024 patches at a time: torch
    would write as many searches as two images need, into a network for batches of two only if they are several, and
    otherwise trace the network twice, to find how many images need one.
    """
    from anomalib.models.image.patchcore import torch_model  # noqa: PLC0415  # brings all models along

    patchcore: Any = torch_model
    limit = patchcore.DEFAULT_CHUNK_SIZE
    in_place: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in in_place:
        module.inplace = False
    patchcore.DEFAULT_CHUNK_SIZE = _Unlimited()
    try:
        yield
    finally:
        patchcore.DEFAULT_CHUNK_SIZE = limit
        for module in in_place:
            module.inplace = True


def set_max_steps(trainer: Trainer, steps: int) -> None:
    """Let a trainer stop after so many steps, where its constructor was not told."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def is_stopping(trainer: Trainer) -> bool:
    """Whether a training was told to stop, by a callback for example, and will make no further step."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early  # noqa: SLF001


def has_trained_to_its_end(trainer: Trainer) -> bool:
    """Whether a trainer has trained before and has nothing left to do: its next fit makes no step."""
    loop = trainer.fit_loop
    return loop.epoch_progress.total.ready > 0 and loop.done


def before_saving(trainer: Trainer, act: Callable[[], None]) -> None:
    """Let a function run before a trainer saves a checkpoint, until :func:`saves_as_before`.

    Some callbacks, such as ``EarlyStopping``, end a training after the last hook of the model before the checkpoint.

    Args:
        trainer: Changed in place.
        act: May train networks, too: checkpoints are also saved after validations, where nothing has gradients.
    """
    saves_as_before(trainer)
    save = trainer.save_checkpoint

    @functools.wraps(save)
    def act_and_save(*args: Any, **kwargs: Any) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            act()
        save(*args, **kwargs)

    cast("Any", trainer).save_checkpoint = act_and_save


def saves_as_before(trainer: Trainer) -> None:
    """Undo :func:`before_saving`."""
    trainer.__dict__.pop("save_checkpoint", None)


def allow_unused_parameters(strategy: DDPStrategy) -> None:
    """Let DDP work where some parameters get no gradient, whatever the strategy was built with."""
    strategy._ddp_kwargs["find_unused_parameters"] = True  # noqa: SLF001


def is_attached(module: LightningModule) -> bool:
    """Whether a module belongs to a trainer; ``module.trainer`` raises where it does not."""
    return module._trainer is not None  # noqa: SLF001


def decided(batch: Any, model: Any) -> Any:
    """Return a batch without labels and masks of a threshold that the model does not have.

    Where no validation images gave one, anomalib's post-processor compares raw scores with 0.5, whatever their scale,
    and so calls nearly everything abnormal.

    Args:
        batch: After the post-processor; left as it is.
        model: That made it.
    """
    found = copy.copy(batch)
    for field in undecided(model):
        setattr(found, field, None)
    return found


def undecided(model: Any) -> frozenset[str]:
    """Return the fields of a model's batches that compare with a threshold it does not have."""
    post = getattr(model, "post_processor", None)
    if not isinstance(post, PostProcessor) or not post.enable_thresholding:
        return frozenset()  # what the model says itself
    thresholds = {"pred_label": post.image_threshold}
    if type(post).post_process_batch is PostProcessor.post_process_batch:  # MEBin needs none for its masks
        thresholds["pred_mask"] = post.pixel_threshold
    return frozenset(field for field, value in thresholds.items() if bool(torch.isnan(torch.as_tensor(value))))


def use_test_augmentations(datamodule: AnomalibDataModule, dataset: AnomalibDataset, transform: Any) -> None:
    """Let a dataset prepare its images as a datamodule prepares those of its test set.

    Args:
        datamodule: Has the augmentations of test images.
        dataset: Other images; changed in place.
        transform: Of the model's pre-processor, whose resizing anomalib adds; None if there is none.
    """
    if transform is None:
        dataset.augmentations = datamodule.test_augmentations
    else:
        datamodule._update_subset_augmentations(dataset, datamodule.test_augmentations, transform)  # noqa: SLF001


class DataHooks(AnomalibDataModule):
    """Public names for what a datamodule of anomalib brings along; a base class to name before one of anomalib."""

    def _setup(self, _stage: str | None = None) -> None:
        self.read_data()

    def _create_test_split(self) -> None:
        self.split_test()

    def _create_val_split(self) -> None:
        self.split_validation()

    def read_data(self) -> None:
        """Set ``train_data`` and ``test_data``; anomalib's way unless a subclass knows better."""
        cast("Any", super())._setup()  # noqa: SLF001

    def split_test(self) -> None:
        """Give the test set normal images where it has none; anomalib's way unless a subclass knows better."""
        super()._create_test_split()

    def split_validation(self) -> None:
        """Make the validation set; anomalib's way unless a subclass knows better."""
        super()._create_val_split()


@contextmanager
def isolated_random() -> Iterator[None]:
    """Restore the global random numbers of torch, NumPy and Python afterwards.

    After an error, too, which Lightning's own ``isolate_rng`` does not: it would end where the error was raised.
    """
    states = ExitStack()
    states.enter_context(isolate_rng())
    try:
        yield
    finally:
        states.close()  # tells it of no error


@contextmanager
def inner_trainer() -> Iterator[None]:
    """Let a trainer that runs inside of another one tell warnings only, and none of what is so by intent."""
    # "GPU available: ..." and the like, which the outer trainer has told already.
    told = cast("Any", rank_zero).rank_zero_module.log
    level = told.level
    with warnings.catch_warnings():
        for message in _INTENDED:
            warnings.filterwarnings("ignore", message)
        told.setLevel(logging.WARNING)
        try:
            yield
        finally:
            told.setLevel(level)


@contextmanager
def with_callback(engine: Engine, callback: Callback) -> Iterator[None]:
    """Give an engine one more callback for as long as the context lasts, whether it has its trainer yet or not."""
    cached = engine._cache.args  # noqa: SLF001  # the trainer is made of them
    made: Any = engine._trainer  # noqa: SLF001
    (cached["callbacks"] if made is None else made.callbacks).append(callback)
    try:
        yield
    finally:
        trainer: Any = engine._trainer  # noqa: SLF001
        # A run makes a new list of those that are given: the next trainer would have the callback, too.
        for callbacks in (cached["callbacks"], trainer.callbacks if trainer is not None else []):
            if callback in callbacks:
                callbacks.remove(callback)
