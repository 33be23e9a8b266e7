"""Heat maps lie where the network saw what it marks, whatever the pre-processor resizes, crops and pads."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from anomalib.data.transforms import ExportableCenterCrop, SquarePad
from anomalib.models import L2BT, Dinomaly, Patchcore
from PIL import Image
from torchvision.transforms import v2

from anomalib_msacl.cli import main
from anomalib_msacl.demo.examiner import Examiner
from anomalib_msacl.export import AntialiasedResize
from anomalib_msacl.medical import ImageReader
from anomalib_msacl.medical.intensity import Intensity
from anomalib_msacl.medical.reading import Reading
from anomalib_msacl.screening.bundle import Bundle, Limits, bundle_path
from anomalib_msacl.screening.capture import placed
from anomalib_msacl.screening.describe import Record, describe
from anomalib_msacl.screening.files import FileReader
from anomalib_msacl.screening.heat_map import draw_heat_map
from anomalib_msacl.screening.output import Output
from anomalib_msacl.screening.region import WHOLE, seen_region, unfollowed
from anomalib_msacl.screening.runner import Screening
from anomalib_msacl.screening.scorer import Scored, find_model
from anomalib_msacl.screening.sources import Source
from tests.medical_files import write_dicom
from tests.unit.screening.conftest import SIZE, Trained

SIZES = [(256, 256), (300, 420), (411, 263)]
TRANSFORMS = {
    "resized": [v2.Resize((96, 128))],
    "by the shorter side": [v2.Resize(100), v2.Normalize([0.0] * 3, [1.0] * 3)],
    "cropped": [v2.Resize((256, 256)), v2.CenterCrop(128)],
    "by the shorter side, cropped": [v2.Resize(256), v2.CenterCrop((128, 160))],
    "exported, cropped at once": [AntialiasedResize(200, crop=(131, 128))],
    "exported": [AntialiasedResize(200), ExportableCenterCrop((131, 128))],
    "cropped, then resized": [v2.CenterCrop((190, 240)), v2.Resize((64, 64))],
    "padded by a crop": [v2.Resize((120, 90)), v2.CenterCrop((151, 100))],
    "squared": [SquarePad(), v2.Resize((128, 128))],
}
RECORD = Record(None, {}, {})  # of a model that was not fitted
UNKNOWN = [v2.RandomCrop(8), v2.Pad(3), v2.RandomHorizontalFlip(), v2.RandomRotation(5), v2.Resize(9, max_size=12)]


def names(steps: list[Any]) -> tuple[str, ...]:
    """Return steps as a bundle keeps them."""
    return tuple(repr(step) for step in steps)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_region_is_the_one_that_torchvision_leaves(kind: str, size: tuple[int, int]) -> None:
    places = [(torch.arange(side) + 0.5) / side for side in size]
    image = torch.stack([*torch.meshgrid(*places, indexing="ij"), torch.ones(size)])  # a pixel's values say its place
    seen = v2.Compose(TRANSFORMS[kind])(image[None])[0]
    region = seen_region(names(TRANSFORMS[kind]), *size)
    for axis, low, high in ((0, region.top, region.bottom), (1, region.left, region.right)):
        side = seen.shape[1 + axis]
        expected = float(low) + (torch.arange(side) + 0.5) / side * float(high - low)
        found = seen[axis].movedim(axis, 0)[:, seen.shape[2 - axis] // 2]
        inside = (expected > 0.03) & (expected < 0.97)
        inside[:3] = inside[-3:] = False  # at edges, interpolation has no neighbours
        assert inside.sum() > 40
        torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-3)  # a pixel is at least .0024


@dataclass(frozen=True)
class Perfect:
    """A model whose map is what its network sees of the image."""

    steps: list[Any]
    bundle: Bundle

    def score(self, image: np.ndarray) -> Scored:
        seen = v2.Compose(self.steps)(torch.from_numpy(image)[None])[0, 0].numpy()
        return Scored(1.5, 0.9, True, np.where(seen > 0.6, seen, 0).astype(np.float32))


def screening(steps: list[Any], out: Path) -> Screening:
    limits = Limits(1.0, 0.0, 2.0)
    bundle = Bundle("a.B", "", "", "0", {}, names(steps), (), limits, limits)
    rule = replace(Intensity.of({"window": [100, 200]}), depth=8)
    return Screening(Perfect(steps, bundle), FileReader(Reading(ImageReader(rule))), Output(out), "all", dicom=True)


@pytest.mark.parametrize("ending", [".png", ".dcm"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_spot_is_marked_where_it_is_and_nothing_else(
    tmp_path: Path, kind: str, size: tuple[int, int], ending: str
) -> None:
    steps = TRANSFORMS[kind]
    centre = tuple(round(side * part) for side, part in zip(size, (0.44, 0.55), strict=True))
    pixels = np.full(size, 20, np.uint8)
    pixels[tuple(slice(place - 6, place + 7) for place in centre)] = 240
    path = tmp_path / f"a{ending}"
    if ending == ".png":
        Image.fromarray(pixels).save(path)
    else:
        study = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"}
        write_dicom(path, pixels, bits=8, WindowCenter=100, WindowWidth=200, **study)
    (row,) = screening(steps, tmp_path / "out").rows(Source(path, path.name))
    assert not row.error
    written = tmp_path / "out" / row.map
    drawn = np.asarray(Image.open(written)) if ending == ".png" else pydicom.dcmread(written).pixel_array
    drawn = drawn[: size[0], : size[1]].astype(int)
    marked = np.abs(drawn - drawn[..., ::-1]).max(axis=-1) > 8  # the image is grey, colours are those of the map
    rows, columns = np.nonzero(marked)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(centre[0], abs=1.5)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(centre[1], abs=1.5)
    assert max(np.ptp(rows), np.ptp(columns)) < 26
    if ending == ".dcm":  # the object says which part was examined
        told = re.search(r"examined only: rows (.+)-(.+), columns (.+)-(.+)", pydicom.dcmread(written).ImageComments)
        rows, columns = np.nonzero(placed(np.ones((2, 2), np.float32), size, seen_region(names(steps), *size)))
        bounds = [rows.min() + 1, rows.max() + 1, columns.min() + 1, columns.max() + 1]
        assert [int(bound) for bound in told.groups()] == bounds if told else bounds == [1, size[0], 1, size[1]]


def test_a_map_marks_nothing_outside_of_its_region() -> None:
    region = seen_region(["Resize(size=[256])", "CenterCrop(size=(128, 128))"], 256, 256)
    everywhere = np.ones((128, 128), np.float32)
    found = placed(everywhere, (256, 256), region)
    assert found[64:192, 64:192].min() == 1
    assert found.sum() == 128 * 128
    image = np.full((3, 256, 256), 0.5, np.float32)
    drawn = np.asarray(draw_heat_map(image, everywhere, [], region))[:256, :256]
    assert (drawn[found == 0] == 128).all()
    assert not (drawn[found == 1] == 128).all(axis=-1).any()


@pytest.mark.parametrize("steps", [[], ["Resize(size=[96, 128], interpolation=bilinear, antialias=True)"]])
def test_without_a_crop_the_map_is_stretched_over_the_image_as_ever(steps: list[str]) -> None:
    region = seen_region(steps, 301, 263)
    assert region == WHOLE
    plane = np.random.default_rng(0).random((96, 128)).astype(np.float32)
    stretched = Image.fromarray(plane).resize((263, 301), Image.Resampling.BILINEAR)
    assert np.array_equal(placed(plane, (301, 263), region), np.asarray(stretched))


def test_steps_that_may_move_pixels_are_known_by_their_names() -> None:
    for step in UNKNOWN:
        assert unfollowed(["Grayscale(num_output_channels=3)", repr(step)]) == repr(step)
    assert unfollowed(["Sequential(\n  (0): Resize(size=[9])\n)"]) == "Sequential( (0): Resize(size=[9]) )"


def test_steps_whose_effect_is_not_known_are_refused_for_maps_only(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = UNKNOWN[0]
    model = tmp_path / "model.xml"
    for part in find_model(trained.export).parent.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    path = bundle_path(model)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "transform": [*content["transform"], repr(step)]}))
    arguments = ["screen", str(model), str(trained.root / "new/1"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(arguments)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"the step {step}, whose effect on places is not known: screen with --maps none" in told
    assert not (tmp_path / "out/scores.csv").exists()
    main([*arguments, "--maps", "none"])
    assert "1 images of 1 files" in capsys.readouterr().out
    answer = Examiner(model).examine(trained.root / "new/1")
    assert answer.heat_map is None
    assert f"No map: where it belongs is not known behind the model's step {step}" in answer.text
    assert answer.text.startswith("## Abnormal")


def test_the_page_of_demo_places_maps_as_screen_does(trained: Trained) -> None:
    examiner = Examiner(trained.export)
    scorer: Any = examiner._scorer
    scorer.bundle = replace(scorer.bundle, transform=names([v2.Resize(SIZE), v2.CenterCrop((24, 20))]))
    path = trained.root / "new/1"
    answer = examiner.examine(path)
    plain = np.asarray(answer.image.resize((213, 256), Image.Resampling.BOX))
    assert answer.heat_map is not None
    drawn = np.asarray(answer.heat_map)[:256, :213]
    changed = (drawn != plain).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 64
    assert rows.max() < 192
    assert columns.min() >= 53
    assert columns.max() < 160


def test_pre_processors_of_anomalib_are_followed() -> None:
    found = {}
    for model, crop in ((Patchcore, {"center_crop_size": (32, 48)}), (Dinomaly, {"crop_size": 48}), (L2BT, {})):
        given = model.configure_pre_processor(image_size=(64, 64), **crop)
        steps = describe(Patchcore("test_resnet", ["layer2"], pre_trained=False, pre_processor=given), RECORD).transform
        assert len(steps) == 3
        assert not unfollowed(steps)
        found[model.__name__] = [float(side) for side in seen_region(steps, 100, 200)]
    assert found["Patchcore"] == [0.25, 0.125, 0.75, 0.875]
    assert found["Dinomaly"] == [0.125, 0.125, 0.875, 0.875]
    assert found["L2BT"] == [-0.5, 0, 1.5, 1]
