"""``val_split_mode: medmix`` of folders; the names of anomalib's own modes work as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import ValSplitMode
from jsonargparse import ArgumentParser
from PIL import Image

from anomalib_msacl import InputError
from anomalib_msacl.data import CheckedFolder, MedicalFolder, MedMixDataset, Phantom
from tests.medical_files import tissue


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(8):
        for folder in ("good", "bad"):
            path = tmp_path / folder / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(tissue(index + 50 * (folder == "bad"), (40, 48), 0, 255).astype(np.uint8)).save(path)
    return tmp_path


@pytest.mark.parametrize("name", ["anomalib_msacl.data.CheckedFolder", "anomalib_msacl.data.MedicalFolder"])
@pytest.mark.parametrize("mode", ["medmix", "from_train", "same_as_test", "none"])
def test_the_command_line_takes_all_modes(root: Path, name: str, mode: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    given = {"name": "mine", "root": root, "normal_dir": "good", "abnormal_dir": "bad", "seed": 0}
    given |= {"val_split_mode": mode, "val_split_ratio": 0.5, "test_split_ratio": 0.25}
    options = [f"--data.init_args.{key}={value}" for key, value in given.items()]
    data = parser.instantiate_classes(parser.parse_args([f"--data={name}", *options])).data
    data.setup()
    assert isinstance(data.val_split_mode, ValSplitMode)
    assert isinstance(getattr(data, "val_data", None), MedMixDataset) == (mode == "medmix")
    assert len(data.train_data) == (3 if mode in {"medmix", "from_train"} else 6)
    if mode == "medmix":
        labels = data.val_data.samples.label_index
        assert sorted(labels) == [0, 1, 1]
        assert not {*data.val_data.source.samples.image_path} & {*data.train_data.samples.image_path}
        assert data.val_split_mode == ValSplitMode.NONE  # all that anomalib is told


def test_the_seed_decides_which_images_are_held_out(root: Path) -> None:
    def held_out(seed: int) -> list[str]:
        data = CheckedFolder("mine", "good", root, val_split_mode="medmix", seed=seed, test_split_mode="none")
        data.setup()
        return list(data.val_data.source.samples.image_path)

    assert held_out(1) == held_out(1) != held_out(2)


@pytest.mark.parametrize("kind", [CheckedFolder, MedicalFolder])
@pytest.mark.parametrize("mode", ["medmx", "from_nowhere", ""])
def test_modes_that_do_not_exist_are_told(kind: type, mode: str) -> None:
    with pytest.raises(InputError, match=f"val_split_mode is {mode}: set it to medmix, none"):
        kind("mine", normal_dir="good", val_split_mode=mode)


def test_the_default_is_that_of_anomalib() -> None:
    assert CheckedFolder("mine", "good").val_split_mode == ValSplitMode.FROM_TEST
    assert Phantom().val_split_mode == ValSplitMode.FROM_TEST
    assert not CheckedFolder("mine", "good").medmix_validation
    assert MedicalFolder("mine", normal_dir="good").medmix_validation
