"""A pre-training that is killed goes on to the same weights, and what is left behind does no harm."""

from __future__ import annotations

import csv
import errno
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalib_msacl import InputError, MsaclPretraining, pretrain
from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.backbone.folder import is_intact, remove_leftovers, save_backbone
from anomalib_msacl.data.looks import SEEN
from anomalib_msacl.pretraining import Pretrained, trainings
from anomalib_msacl.pretraining.checkpoints import STATE, Checkpoints
from anomalib_msacl.pretraining.lightning_model import PretrainingModule, make_trainer
from anomalib_msacl.pretraining.locking import alone_with
from anomalib_msacl.pretraining.loggers import Curves
from tests.conftest import make_recipe, phantom

Make = Callable[..., Any]
# Ten images make two batches of four and, as nothing is dropped, one of two: three batches, two steps an epoch.
RUN: dict[str, Any] = {"max_steps": 5, "batch_size": 4, "accumulate": 2, "evaluations": 2, "centre_images": 4}


@pytest.fixture
def two_trainings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let a run of few steps be divided all the same."""
    monkeypatch.setattr(trainings, "SHORTEST", 1)
    return {"trainings": 2}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A folder of weights that several callbacks can begin at."""
    torch.manual_seed(2)
    backbone, provenance = create_backbone("test_resnet", "random")
    return save_backbone(backbone, tmp_path / "start", provenance)


class Killed(BaseException):
    """Ends a run as a signal would, between two lines."""


class Killing(Checkpoints):
    """Ends the run after a step, once its checkpoint is written."""

    def __init__(self, path: Path, step: int) -> None:
        super().__init__(path, 0)
        self.step = step

    def after_step(self, trainer: Trainer) -> None:
        super().after_step(trainer)
        if trainer.global_step == self.step:
            raise Killed


def run(checkpoints: Checkpoints | None = None, seed: int = 3, **settings: Any) -> Pretrained:
    torch.manual_seed(seed)
    backbone, provenance = create_backbone("test_efficientnet", "random")
    images = torch.rand(16, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(images[:10], batch_size=4, shuffle=True)
    encoder = Encoder(backbone, frozen_stride=4)
    return pretrain(encoder, provenance, loader, images[10:], make_recipe(**RUN, **settings), checkpoints=checkpoints)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_run_goes_on_to_the_weights_of_one_that_was_not(tmp_path: Path, two_trainings: dict[str, Any]) -> None:
    """Killed in the middle of an epoch, at the end of it and of the first training, and in the second training."""
    whole = run(**two_trainings)
    path = tmp_path / "run.ckpt"
    for step in (1, 2, 4):  # each goes on from the last
        with pytest.raises(Killed):
            run(Killing(path, step), **two_trainings)
        assert torch.load(path, weights_only=True)["global_step"] == step
    last = Checkpoints(path)
    found = run(last, **two_trainings)
    assert last.resumed
    assert equal(found.weights, whole.weights)
    assert [*found.candidates] == [*whole.candidates]
    assert [score[:2] for score in found.candidates.values()] == [score[:2] for score in whole.candidates.values()]


@pytest.mark.parametrize("content", [b"half of a file", b"hello world", b"\x80\x02\x8a\n"])
def test_a_checkpoint_that_cannot_be_read_is_told_and_the_run_begins_anew(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    assert Checkpoints(path).read() is None
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("content", [3, {STATE: 3}, {STATE: {}}, {STATE: {}, "global_step": "x", "state_dict": {}}])
def test_a_file_of_another_program_is_told_and_the_run_begins_anew(
    content: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(content, tmp_path / "run.ckpt")
    assert Checkpoints(tmp_path / "run.ckpt").read() is None
    assert "is no checkpoint of a pre-training; it begins anew" in caplog.text


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(Checkpoints(tmp_path / "no folder" / "run.ckpt", 0))
    assert found.steps == 5
    assert "no checkpoint could be written" in caplog.text


def test_on_a_full_disk_the_run_ends_in_a_sentence_and_goes_on_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither checkpoints nor weights can be written after the second step of five."""
    path = tmp_path / "run.ckpt"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Filling(Checkpoints):
        def after_step(self, trainer: Trainer) -> None:
            super().after_step(trainer)
            if trainer.global_step == 2:
                monkeypatch.setattr(Trainer, "save_checkpoint", full)
                monkeypatch.setattr(timm.models, "save_for_hf", full)

    found = run(Filling(path, 0))
    assert caplog.text.count("no checkpoint could be written") == 2
    with pytest.raises(InputError, match=r"weights cannot be saved to .*No space left .* free some space.*start again"):
        found.save(tmp_path / "weights")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    monkeypatch.undo()
    again = Checkpoints(path)
    later = run(again)
    assert again.resumed
    assert equal(load_file(later.save(tmp_path / "weights") / "model.safetensors"), found.weights)


def test_msacl_resumes_to_the_weights_of_a_run_that_was_not_stopped(
    make_msacl: Make, make_engine: Make, phantom_root: Path, tmp_path: Path, two_trainings: dict[str, Any]
) -> None:
    """The checkpoint of the first step lies in the middle of an epoch of four batches, that of the second between two
    trainings, though Lightning writes it before anything of this package runs.
    """
    settings = {"max_steps": 4, "batch_size": 4, "accumulate": 2, "evaluations": 1, "evaluation_images": 4}
    recipe = make_recipe(**settings, centre_images=4, **two_trainings)
    saved = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)

    def data() -> Any:
        return phantom(phantom_root, val_split_mode="from_train", val_split_ratio=0.2, seed=0)

    first = make_msacl(recipe, detector=False)
    make_engine(max_steps=4, callbacks=[saved]).fit(first, datamodule=data())
    for step in (1, 2, 3):
        again = make_msacl(recipe, detector=False)
        make_engine(max_steps=4).fit(again, datamodule=data(), ckpt_path=tmp_path / "kept" / f"step={step}.ckpt")
        assert equal(again.encoder.backbone.state_dict(), first.encoder.backbone.state_dict()), step


def test_a_folder_whose_tensors_have_changed_is_made_again(
    start: Path,
    make_patchcore: Make,
    make_engine: Make,
    phantom_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A good one is left as it is, byte for byte; leftovers of killed runs are gone afterwards."""
    recipe = make_recipe(max_steps=1, batch_size=4, evaluations=0, centre_images=4)

    def fit() -> MsaclPretraining:
        callback = MsaclPretraining(str(start), recipe, tmp_path / "made")
        engine = make_engine(callbacks=[callback], max_epochs=1)
        engine.fit(make_patchcore(), datamodule=phantom(phantom_root, seed=0))
        return callback

    folder = fit().directory
    file = folder / "model.safetensors"
    tensors, written = load_file(file), file.stat().st_mtime_ns
    fit()
    assert file.stat().st_mtime_ns == written
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, file)
    (folder.parent / f".saving-{folder.name}-x").mkdir()
    assert fit().directory == folder
    assert "does not hold the weights that were saved there (other tensors)" in caplog.text
    assert equal(load_file(file), tensors)
    assert {path.name for path in folder.parent.iterdir()} <= {folder.name, "logs", SEEN, f".{folder.name}.lock"}


def test_a_run_that_goes_on_keeps_its_curves(
    start: Path,
    make_patchcore: Make,
    make_engine: Make,
    phantom_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the middle of the last step of four, of which three are in the checkpoint."""
    recipe = make_recipe(max_steps=4, batch_size=4, accumulate=1, evaluations=1, centre_images=4)
    monkeypatch.setattr("anomalib_msacl.callback.make_trainer", partial(make_trainer, log_every_n_steps=1))
    callback = MsaclPretraining(str(start), recipe, tmp_path / "made", checkpoint_minutes=0)
    step = PretrainingModule.training_step

    def killed(module: PretrainingModule, *arguments: Any) -> Tensor:
        if module.global_step == 3:
            raise Killed
        return step(module, *arguments)

    def fit() -> list[dict[str, str]]:
        engine = make_engine(callbacks=[callback], max_epochs=1)
        with suppress(Killed), warnings.catch_warnings():
            warnings.filterwarnings("error", "Experiment logs directory")
            engine.fit(make_patchcore(), datamodule=phantom(phantom_root, seed=0))
        with next((tmp_path / "made" / "logs").rglob("metrics.csv")).open(newline="") as file:
            return list(csv.DictReader(file))

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingModule, "training_step", killed)
        before = fit()
    after = fit()
    assert [row["step"] for row in before] == ["0", "1", "2"]
    assert [row["step"] for row in after] == ["0", "1", "2", "3"]
    assert [row["train_loss"] for row in after[:3]] == [row["train_loss"] for row in before]


def test_curves_that_cannot_be_read_and_those_of_later_steps_do_not_count(tmp_path: Path) -> None:
    def log(*steps: int) -> list[str]:
        curves = Curves(tmp_path, "run")
        for step in steps:
            curves.log_metrics({f"loss of {len(steps)}": 0.5}, step)
        curves.save()
        with file.open(newline="") as opened:
            return [
                f"{row['step']} {''.join(name for name in row if name != 'step' and row[name])}"
                for row in csv.DictReader(opened)
            ]

    file = tmp_path / "logs" / "run" / "metrics.csv"
    assert log(9, 19, 29) == ["9 loss of 3", "19 loss of 3", "29 loss of 3"]
    assert log(19, 29) == ["9 loss of 3", "19 loss of 2", "29 loss of 2"]
    assert log(9) == ["9 loss of 1"]
    file.write_bytes(b"step\n\xff\n")
    assert log(9) == ["9 loss of 1"]


def test_leftovers_of_other_folders_stay(tmp_path: Path) -> None:
    (tmp_path / ".saving-a-1").mkdir()
    (tmp_path / ".saving-b-1").mkdir()
    remove_leftovers(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [".saving-b-1"]
    assert not is_intact(tmp_path / "a")


def test_the_second_run_waits_for_the_first_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A lock file that a dead process has left keeps nobody out."""
    directory = tmp_path / "weights"
    (tmp_path / ".weights.lock").write_text("left over")
    with alone_with(directory):
        assert not caplog.text
    held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(tmp_path / ".weights.lock"):
            held.set()
            may_go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    threading.Timer(0.2, may_go.set).start()
    with alone_with(directory):
        assert may_go.is_set()
    assert "another run makes" in caplog.text


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backbone, provenance = create_backbone("test_resnet", "random")
    with pytest.raises(InputError, match=r"weights cannot be saved to .* free some space"):
        save_backbone(backbone, tmp_path / "file" / "weights", provenance)
    with pytest.raises(InputError, match=r"cannot be saved below .* set root"), alone_with(tmp_path / "file" / "x"):
        pass
