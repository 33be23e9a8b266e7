"""The bundle beside an export: what it says is what the training did, and what does not match is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.models import Patchcore

from anomalib_msacl import InputError
from anomalib_msacl.cli import main
from anomalib_msacl.data.units import recorded_unit
from anomalib_msacl.medical import ImageReader, Slices
from anomalib_msacl.medical.intensity import Intensity
from anomalib_msacl.medical.reading import Reading
from anomalib_msacl.screening.bundle import Calibration, Limits, bundle_path, copy_bundle, read_bundle, sha256
from anomalib_msacl.screening.files import FileReader
from tests.unit.screening.conftest import TEST, Trained


@pytest.fixture
def model(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the export, to be spoilt."""
    shutil.copytree(trained.export / "weights/openvino", tmp_path / "copy")
    return tmp_path / "copy/model.xml"


def test_the_bundle_holds_what_the_training_fixed(trained: Trained) -> None:
    bundle = read_bundle(next(trained.export.rglob("model.xml")))
    fitted = Patchcore.load_from_checkpoint(trained.checkpoint)
    post = fitted.post_processor
    for limits, kind in ((bundle.image, "image"), (bundle.pixel, "pixel")):
        known = [float(getattr(post, f"{kind}_{name}")) for name in ("threshold", "min", "max")]
        assert limits.known() == tuple(known)
        assert limits.chosen.startswith("NormalsThreshold: the thresholds are the scores of rank")
    assert bundle.model == "anomalib.models.image.patchcore.lightning_model.Patchcore"
    assert bundle.backbone == "test_resnet"
    assert bundle.size == (32, 32)
    assert any("antialias=True" in step and "BILINEAR" in step for step in bundle.transform)
    assert bundle.calibration is not None
    assert list(bundle.calibration.scores) == trained.calibration
    assert bundle.calibration.unit == "patient"
    assert Reading.from_dict(bundle.reading or {}) == trained.data.reading


def test_files_are_read_to_the_very_pixels_of_the_training(trained: Trained) -> None:
    bundle = read_bundle(next(trained.export.rglob("model.xml")))
    reader = FileReader(Reading.from_dict(bundle.reading or {}))
    dataset = trained.data.test_data
    dataset.augmentations = None
    for index in range(TEST):
        path = Path(dataset.samples.image_path[index])
        (frame,) = reader.frames(path)
        assert np.array_equal(reader.pixels(path, frame), dataset[index].image.numpy())


@pytest.mark.parametrize("given", ["auto", "dicom", {"window": [10.5, 900]}, {"percentile": [0.1, 99.7]}])
def test_a_reading_survives_json(given: Any) -> None:
    rule = replace(Intensity.of(given), window=(0.1, 1 / 3), depth=12, common_window="40 / 400 LINEAR")
    reading = Reading(ImageReader(rule, Slices(1, 3, None, 2), grey=True, hide_inset=True), None, "PatientID")
    assert Reading.from_dict(json.loads(json.dumps(reading.as_dict()))) == reading


def test_scores_are_normalised_as_by_anomalib_and_back() -> None:
    limits = Limits(2.0, -1.0, 4.0, "", 0.5)
    raw = torch.linspace(-2, 6, 33)
    ends = [torch.tensor(value) for value in (-1.0, 4.0, 2.0)]
    expected = Patchcore("test_resnet", ["layer2"], pre_trained=False).post_processor._normalize(raw, *ends)
    found = [limits.normalised(value) for value in raw.tolist()]
    assert found == pytest.approx(expected.tolist())
    back = [limits.raw(value) for value in found]
    assert [value is None for value in back] == [value in {0, 1} for value in found]
    assert all(
        value == pytest.approx(given) for value, given in zip(back, raw.tolist(), strict=True) if value is not None
    )
    assert replace(limits, sensitivity=0.6).decision == pytest.approx(1.5)


def test_a_changed_copy_can_take_the_bundle_along(model: Path, tmp_path: Path) -> None:
    openvino.save_model(openvino.Core().read_model(model), tmp_path / "half.xml", compress_to_fp16=True)
    copy_bundle(model, tmp_path / "half.xml")
    found, known = read_bundle(tmp_path / "half.xml"), read_bundle(model)
    assert found.files == {name: sha256(tmp_path / name) for name in ("half.xml", "half.bin")}
    assert replace(found, files=known.files) == known


def test_what_changes_a_result_changes_the_version_and_nothing_else_does(model: Path) -> None:
    """Two PatchCores of one architecture have one ``model.xml`` and differ in ``model.bin`` only."""
    known = read_bundle(model)
    others = [
        replace(known, files={**known.files, "model.bin": "0" * 64}),
        replace(known, image=replace(known.image, threshold=known.image.decision + 0.01)),
        replace(known, pixel=replace(known.pixel, high=known.pixel.known()[2] + 1)),
        replace(known, reading={**(known.reading or {}), "patient_tag": "PatientName"}),
        replace(known, transform=(*known.transform, "CenterCrop(16)")),
        replace(known, files={}, weights_sha256="0" * 64),
    ]
    assert len({known.version, *(bundle.version for bundle in others)}) == len(others) + 1
    turned = dict(reversed(known.files.items()))
    assert replace(known, files=turned, calibration=None, versions={}).version == known.version
    assert len(known.version) < 64  # what DICOM holds


def changed(**content: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = bundle_path(model)
        path.write_text(json.dumps({**json.loads(path.read_text()), **content}))

    return change


@pytest.mark.parametrize(("patients", "unit"), [(True, "patient"), (False, "image")])
def test_a_bundle_of_an_earlier_version_means_what_it_said(model: Path, patients: bool, unit: str) -> None:
    known = read_bundle(model)
    changed(calibration={"scores": [1.0, 2.0], "patients": patients, "level": 0.02})(model)
    calibration = Calibration((1.0, 2.0), unit, 0.02)  # type: ignore[arg-type]
    assert read_bundle(model) == replace(known, calibration=calibration)


def append(model: Path) -> None:
    with model.with_suffix(".bin").open("ab") as file:
        file.write(b"x")


def one_channel(model: Path) -> None:
    """Replace the model by one of grey images, with a bundle that says otherwise."""
    image = openvino.opset13.parameter([-1, 1, -1, -1], np.float32, name="input")
    score = openvino.opset13.reduce_max(image, np.array([1, 2, 3]), keep_dims=False)
    label = openvino.opset13.greater(score, np.float32(0.5))
    score.output(0).set_names({"pred_score"})
    label.output(0).set_names({"pred_label"})
    known = bundle_path(model).read_text()
    openvino.save_model(openvino.Model([score, label], [image]), model)
    digests = {part.name: sha256(part) for part in (model, model.with_suffix(".bin"))}
    bundle_path(model).write_text(json.dumps({**json.loads(known), "files": digests}))


def no_model(model: Path) -> None:
    model.write_text("no model")
    changed(files={part.name: sha256(part) for part in (model, model.with_suffix(".bin"))})(model)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no bundle": (lambda model: bundle_path(model).unlink(), r"has no model\.bundle\.json beside it.*: export"),
    "another bin": (append, r"model\.bin is not the file that model\.bundle\.json was written for"),
    "no bin": (
        lambda model: model.with_suffix(".bin").unlink(),
        r"model\.bin is missing, which model\.bundle\.json names",
    ),
    "a later format": (
        changed(format=2, versions={"anomalib-msacl": "9.9"}),
        r"is of format 2, made by anomalib-msacl 9\.9, but this version, .*, reads format 1",
    ),
    "no format": (
        lambda model: bundle_path(model).write_text("{}"),
        r"is of format None, made by .* of an unknown version",
    ),
    "no JSON": (lambda model: bundle_path(model).write_text("no"), r"model\.bundle\.json cannot be read"),
    "a list": (lambda model: bundle_path(model).write_text("[1]"), r"model\.bundle\.json cannot be read"),
    "an unknown entry": (changed(more=1), r"cannot be read .more missing or not known"),
    "an unknown unit": (
        changed(calibration={"scores": [1.0], "unit": "hospital", "level": 0.01}),
        r"those of 'hospital', but this version knows only patient, file, image: use the version",
    ),
    "one channel, says the bundle": (changed(channels=1), r"images of 1 channels, but images are read with 3"),
    "one channel, says the model": (one_channel, r"model\.xml takes images of 1 channels, but images are read with 3"),
    "no threshold": (
        changed(image={"threshold": None, "low": None, "high": None, "chosen": "", "sensitivity": 0.5}),
        r"has no threshold.*: fit it with NormalsThreshold",
    ),
    "an unknown reading": (changed(reading={"reader": {}}), r"reading of the training images is not of this version"),
    "no network": (no_model, r"model\.xml cannot be read as a model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_match_is_refused_in_one_sentence(
    model: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, words = REFUSED[name]
    change(model)
    with pytest.raises(SystemExit) as caught:
        main(["screen", str(model), str(trained.root / "new"), "--out", str(tmp_path / "out")])
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(words, told), told
    assert not (tmp_path / "out/scores.csv").exists()


def test_another_reading_than_that_of_the_checkpoint_is_told(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    state = trained.data.state_dict()
    trained.data.load_state_dict(state)
    assert not caplog.records
    state["anomalib_msacl_reading"]["reader"]["grey"] = True
    trained.data.load_state_dict(state)
    assert "The checkpoint was trained on images read as 'auto: DICOM files by their common window" in caplog.text


def test_a_reading_of_another_version_is_told() -> None:
    with pytest.raises(InputError, match="is not of this version"):
        Reading.from_dict({"reader": 3})


@pytest.mark.parametrize(
    ("reading", "unit"),
    [
        (None, "patient"),
        ({"patient_pattern": None, "patient_tag": "PatientID"}, "patient"),
        ({"patient_pattern": "^(.)", "patient_tag": None}, "patient"),
        ({"patient_pattern": None, "patient_tag": None}, "file"),  # which earlier versions called patients
    ],
)
def test_who_counted_in_earlier_versions_follows_from_the_rule_for_patients(reading: Any, unit: str) -> None:
    assert recorded_unit({"patients": True}, reading) == unit
    assert recorded_unit({"patients": False}, reading) == "image"
    assert recorded_unit({"unit": "patient", "patients": False}, reading) == "patient"
