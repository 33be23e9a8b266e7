"""Did it help? Intervals, layouts and sentences of a comparison, and the command on real files."""

from __future__ import annotations

import csv
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score, roc_curve

from anomalib_msacl import InputError
from anomalib_msacl.backbone.card import CardFacts
from anomalib_msacl.cli import main
from anomalib_msacl.comparison import Trial, find_layout, interval, resampled_difference, summary, write_scores
from anomalib_msacl.comparison import trials as trials_module
from anomalib_msacl.comparison.configured import Configured
from anomalib_msacl.comparison.outcome import Outcome, joined, outcome_of
from anomalib_msacl.comparison.resampling import draw, strata
from anomalib_msacl.comparison.roc import roc_band
from anomalib_msacl.medical import MedicalFolder
from anomalib_msacl.medical.reader import ImageReader

LABELS = np.array([0] * 12 + [1] * 8)
RECIPE: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "accumulate": 1}
RECIPE |= {"choice": {"evaluations": 1, "images": 4}, "loss": {"centre_images": 4}}


def scores(seed: int, shift: float) -> np.ndarray:
    """Scores of which those of abnormal images are higher by a shift."""
    return np.random.default_rng(seed).normal(size=len(LABELS)) + shift * LABELS


def outcome(values: np.ndarray, labels: np.ndarray = LABELS, files: list[str] | None = None) -> Outcome:
    paths = files or [f"{index}.png" for index in range(len(values))]
    return Outcome(paths, torch.tensor(values), torch.tensor(labels), None, None, None, None)


def trials(before: float, after: float, seeds: int = 3) -> list[Trial]:
    """Trials whose scores have a shift before and another one after."""
    pairs = [(outcome(scores(seed, before)), outcome(scores(seed, after))) for seed in range(seeds)]
    return [Trial("Padim", seed, *pair, CardFacts({})) for seed, pair in enumerate(pairs)]


def test_the_interval_over_seeds_is_that_of_the_t_test() -> None:
    values = [0.1, 0.04, 0.12]
    mean, half = interval(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


def test_the_interval_over_images_is_that_of_a_plain_loop() -> None:
    first, second = [scores(0, 2), scores(1, 2)], [scores(0, 0.5), scores(1, 0.5)]
    random, found = np.random.default_rng(3), []
    for _ in range(50):
        rows = np.concatenate([random.choice(np.arange(12), 12), random.choice(np.arange(12, 20), 8)])
        areas = [[roc_auc_score(LABELS[rows], each[rows]) for each in side] for side in (first, second)]
        found.append(np.mean(areas[0]) - np.mean(areas[1]))
    expected = np.quantile(found, [0.025, 0.975])
    assert resampled_difference(LABELS, first, second, 50, 3) == pytest.approx(tuple(expected))
    # Only the order of scores counts, and a side does not differ from itself.
    stretched = [np.exp(each) for each in first]
    assert resampled_difference(LABELS, stretched, second, 50, 3) == pytest.approx(tuple(expected))
    assert resampled_difference(LABELS, first, first, 50) == (0, 0)


def test_the_interval_over_images_needs_no_memory_for_all_pairs() -> None:
    random = np.random.default_rng(0)
    truth, values = np.arange(4000) % 2, random.normal(size=4000)
    tracemalloc.start()
    resampled_difference(truth, [values], [values + truth], resamples=5)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < 2000 * 2000


def test_the_auroc_of_pixels_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    maps = torch.from_numpy(random.normal(size=(5, 16, 16)).round(1)).half()
    maps[0, 0, :2] = torch.tensor([0.0, -0.0])
    masks = torch.from_numpy(random.random((5, 16, 16)) < 0.2)
    found = replace(outcome(np.zeros(5), np.array([0, 0, 1, 1, 1])), maps=maps, masks=masks)
    expected = roc_auc_score(masks.flatten(), maps.float().flatten())
    small = found.without_maps()
    assert small.pixel_auroc == pytest.approx(expected, abs=1e-12)
    assert small.maps is small.masks is None
    assert replace(found, masks=torch.zeros_like(masks)).without_maps().pixel_auroc is None


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9])
def test_the_auroc_of_pixels_is_the_same_for_maps_of_any_scale(scale: float) -> None:
    """A product of distances can be 1e-10, as that of STFPM, and a likelihood can be beyond what 16 bits hold."""
    maps = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    masks = maps[:, 0] + torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(1)) > 1.4
    maps[:2] /= 100
    fields = {"image_path": None, "gt_label": None, "pred_label": None, "pred_score": torch.zeros(2)}
    parts = [
        outcome_of(SimpleNamespace(**fields, anomaly_map=maps[rows] * scale, gt_mask=masks[rows]))
        for rows in (slice(2), slice(2, 4))
    ]
    expected = roc_auc_score(masks.flatten(), maps.flatten())
    assert joined(parts).without_maps().pixel_auroc == pytest.approx(expected, abs=1e-3)
    if scale == 1:  # where there is a threshold, maps are drawn by their values
        assert joined(parts, 0.5).maps.float().numpy() == pytest.approx(maps[:, 0].numpy(), rel=1e-3)


def test_slices_of_a_file_are_one_thing_to_the_intervals() -> None:
    """Each image three times over, as three slices of a file, is no more than each image once."""
    first, second = [scores(0, 2)], [scores(0, 0.5)]
    thrice = [[np.repeat(each, 3) for each in side] for side in (first, second)]
    files = np.repeat([f"{index}.nii" for index in range(len(LABELS))], 3).tolist()
    once = resampled_difference(LABELS, first, second, 50)
    assert resampled_difference(np.repeat(LABELS, 3), *thrice, 50, groups=files) == pytest.approx(once)
    assert resampled_difference(np.repeat(LABELS, 3), *thrice, 50) != pytest.approx(once)
    band = roc_band(thrice[0][0], np.repeat(LABELS, 3), 50, groups=files)
    assert band.bounds == pytest.approx(roc_band(first[0], LABELS, 50).bounds)
    # In pictures of a report and of a comparison, too.
    made = outcome(thrice[0][0], np.repeat(LABELS, 3), files)
    assert made.groups == files
    assert outcome(first[0]).groups == [f"{index}.png" for index in range(len(LABELS))]
    assert replace(made, patients=["P"] * len(LABELS)).groups == ["P"] * len(LABELS)


def test_normal_slices_of_abnormal_files_are_drawn_with_them() -> None:
    files = ["a", "b", "b", "c", "c"]  # a normal file, and two with a normal and an abnormal slice
    labels = np.array([0, 0, 1, 0, 1])
    assert [[rows.tolist() for rows in part] for part in strata(labels, files)] == [[[0]], [[1, 2], [3, 4]]]
    for seed in range(20):
        rows = draw(strata(labels, files), np.random.default_rng(seed)).tolist()
        assert rows.count(0) == 1
        assert rows.count(1) == rows.count(2)
        assert rows.count(1) + rows.count(3) == 2
    values = np.array([0.0, 0.1, 0.9, 0.2, 0.8])
    low, high = resampled_difference(labels, [values], [-values], 50, groups=files)
    assert (low, high) == (1, 1)  # the one is always right, the other always wrong


def test_the_band_holds_the_curve_and_agrees_with_sklearn() -> None:
    values = scores(0, 1)
    band = roc_band(values, LABELS, 200)
    assert band.area == pytest.approx(roc_auc_score(LABELS, values))
    assert band.bounds[0] < band.area < band.bounds[1]
    assert (band.low <= band.high).all()
    false, true, _ = roc_curve(LABELS, values, drop_intermediate=False)
    for rate in (0.0, 0.25, 0.5, 0.75, 1.0):  # twelve normal images have these rates exactly
        assert band.true[round(100 * rate)] == pytest.approx(true[np.isclose(false, rate)].max())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0, 4, "pre-training helped on this set"),
        (4, 0, "pre-training made it worse on this set; use the untouched backbone"),
        (1, 1, "no difference that these seeds and images can tell, which does not prove that there is none"),
    ],
)
def test_the_verdict_is_honest(before: float, after: float, expected: str) -> None:
    text = summary(trials(before, after))
    assert f"- Padim: {expected}" in text
    assert "12 normal and 8 abnormal test images, 3 seeds" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({tuple(place for place, sign in enumerate(line) if sign == "|") for line in table}) == 1  # aligned
    assert "fewer than 30 images" in text


def test_few_seeds_say_so() -> None:
    assert "repeat with three or more" in summary(trials(1, 1, 2))
    assert "repeat with" not in summary(trials(1, 1, 3))


def test_one_seed_has_no_interval_and_says_so() -> None:
    text = summary(trials(0, 4, 1))
    assert "| - " in text
    assert "One seed only" in text


def test_layouts_are_found(tmp_path: Path) -> None:
    for name in ("train/good", "test/good", "test/crack", "test/dent", "test/empty", "ground_truth/crack"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("crack", "dent"):
        (tmp_path / "test" / name / "a.png").touch()
    found = find_layout(tmp_path)
    assert (found.normal, found.test_normal) == ("train/good", "test/good")
    assert found.abnormal == ["test/crack", "test/dent"]
    assert found.masks == []  # one folder has none
    assert found.unmasked == ["test/dent"]
    (tmp_path / "ground_truth" / "dent").mkdir()
    assert find_layout(tmp_path).masks == ["ground_truth/crack", "ground_truth/dent"]
    assert find_layout(tmp_path).unmasked == []
    shutil.rmtree(tmp_path / "ground_truth")
    assert find_layout(tmp_path).unmasked == []  # nobody expects a table of pixels
    assert find_layout(tmp_path / "train" / "good").normal == "."
    with pytest.raises(InputError, match="is no folder"):
        find_layout(tmp_path / "nothing")


@pytest.mark.parametrize("test_normal", [True, False])
def test_the_datamodules_of_a_comparison_look_into_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_normal: bool
) -> None:
    small_set(tmp_path)
    if not test_normal:
        shutil.rmtree(tmp_path / "test" / "good")
    layout, seen, inspect = find_layout(tmp_path), [], ImageReader.inspect
    monkeypatch.setattr(ImageReader, "inspect", lambda self, path: seen.append(path) or inspect(self, path))
    together = [layout.datamodule(seed) for seed in range(2)]
    for data in together:
        data.setup()
    assert len(seen) == len(set(seen)) > 0
    for seed, data in enumerate(together):
        alone = MedicalFolder(**layout._arguments(seed), duplicates="list")
        alone.setup()
        for name in ("train_data", "test_data"):
            pd.testing.assert_frame_equal(getattr(data, name).samples, getattr(alone, name).samples)


def test_abnormal_images_are_not_taken_for_training(tmp_path: Path) -> None:
    for place in ("good", "bad"):
        (tmp_path / "set" / place).mkdir(parents=True)
        (tmp_path / "set" / place / "1.png").touch()
    with pytest.raises(InputError, match="set has good beside bad, and no folder train"):
        find_layout(tmp_path / "set")
    assert find_layout(tmp_path / "set" / "good").normal == "."
    shutil.rmtree(tmp_path / "set" / "bad")
    assert find_layout(tmp_path / "set").normal == "."


def small_set(root: Path, mask: str = "{}.png", side: int = 32, depth: int = 1) -> None:
    """Coloured images of 32 pixels and square masks."""
    random = np.random.default_rng(0)
    for place, number in (("train/good", 6), ("test/good", 2), ("test/lesion", 2)):
        (root / place).mkdir(parents=True)
        for index in range(number):
            values = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            picture = Image.fromarray(values[..., 0].astype(np.uint16) * 200) if depth == 2 else Image.fromarray(values)
            picture.save(root / place / f"{index}.png")
    square = np.zeros((side, side), np.uint8)
    square[side // 4 : side // 2, side // 4 : side // 2] = 255
    (root / "ground_truth" / "lesion").mkdir(parents=True)
    for index in range(2):
        Image.fromarray(square).save(root / "ground_truth" / "lesion" / mask.format(index))


def grey_one(path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32)).astype(np.uint8)).save(path)


def test_folders_that_a_training_takes_can_be_compared(tmp_path: Path) -> None:
    small_set(tmp_path / "usual")
    assert isinstance(find_layout(tmp_path / "usual").datamodule(0), MedicalFolder)
    small_set(tmp_path / "grey")
    grey_one(tmp_path / "grey" / "train" / "good" / "grey.png")
    small_set(tmp_path / "names", mask="mask_{}.png")
    small_set(tmp_path / "size", side=64)
    for name, number in (("grey", 7), ("names", 6), ("size", 6)):
        layout = find_layout(tmp_path / name)
        with pytest.raises(InputError):  # or else this test would show nothing
            MedicalFolder(**layout._arguments(0)).setup()
        data = layout.datamodule(0)
        data.setup()
        assert (len(data.train_data), len(data.test_data)) == (number, 4)
        assert sum(bool(data.test_data[row].gt_mask.any()) for row in range(4)) == 2
    plain = find_layout(tmp_path / "grey" / "train" / "good").datamodule(0)
    plain.setup()
    assert not any("lesion" in path for path in plain.train_data.samples["image_path"])
    assert len(plain.train_data) > 4
    small_set(tmp_path / "deep", mask="mask_{}.png", depth=2)  # anomalib would make them white
    assert isinstance(find_layout(tmp_path / "deep").datamodule(0), MedicalFolder)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """PaDiM on a tiny backbone."""
    resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [64, 64]}}
    arguments: dict[str, Any] = {"backbone": "test_resnet", "layers": ["layer2"], "n_features": 10}
    arguments |= {"pre_trained": False, "pre_processor": {"class_path": "anomalib.pre_processing.PreProcessor"}}
    arguments["pre_processor"]["init_args"] = {"transform": resize}
    callback = {"class_path": "anomalib_msacl.MsaclPretraining", "init_args": {"weights": "random", "recipe": RECIPE}}
    content = {"model": {"class_path": "anomalib.models.Padim", "init_args": arguments}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | {"trainer": {"callbacks": [callback]}}))
    return path


def test_the_command_compares_and_keeps_the_scores(
    phantom_root: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root,) = phantom_root.iterdir()
    out = tmp_path / "out"
    main(["compare", str(root), "--models", str(config), "--seeds", "1", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "| Padim | ." in printed
    assert "Pixel AUROC" in printed
    assert (out / "comparison.md").read_text() in printed
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 12
    # The table can be made again from the scores.
    for arm in ("untouched", "pre-trained"):
        own = [row for row in rows if row["backbone"] == arm]
        area = roc_auc_score([int(row["label"]) for row in own], [float(row["score"]) for row in own])
        assert f"| {area:.3f}".replace("| 0", "| ") in printed


def test_a_detector_is_fitted_as_its_trainer_says(
    phantom_root: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {"max_epochs": 7, "gradient_clip_val": 0.5, "precision": None, "logger": True, "devices": 4}
    config.write_text(yaml.safe_dump(content))
    given: dict[str, Any] = {}

    def engine(**options: Any) -> Any:
        given.update(options)
        raise InputError("seen")

    monkeypatch.setattr(trials_module, "quiet_engine", engine)
    (root,) = phantom_root.iterdir()
    with pytest.raises(InputError, match="seen"):
        list(trials_module.run_trials(find_layout(root), [Configured.read(config)], [0], config.parent / "out"))
    assert given.pop("callbacks")
    assert given == {"max_epochs": 7, "gradient_clip_val": 0.5}


def test_what_is_compared_is_kept_where_a_later_trial_fails(
    phantom_root: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trials_module._outcome

    def fails_later(layout: Any, config: Any, seed: int, *rest: Any) -> Any:
        if seed:
            raise KeyboardInterrupt
        return whole(layout, config, seed, *rest)

    monkeypatch.setattr(trials_module, "_outcome", fails_later)
    (root,) = phantom_root.iterdir()
    out = tmp_path / "out"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(["compare", str(root), "--models", str(config), "--seeds", "2", "--out", str(out)])
    with (out / "scores.csv").open() as file:
        assert {row["seed"] for row in csv.DictReader(file)} == {"0"}
    assert "1 seed." in (out / "comparison.md").read_text()


def test_a_mistake_in_the_last_model_is_told_before_any_work(
    phantom_root: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(config.read_text().replace("models.Padim", "models.Padin"))
    (root,) = phantom_root.iterdir()
    (tmp_path / "file").touch()
    for models, out, words in (
        (f"{config},{tmp_path / 'bad.yaml'}", "out", "Padin"),
        (str(config), "file", "name another"),
    ):
        with pytest.raises(SystemExit):
            main(["compare", str(root), "--models", models, "--out", str(tmp_path / out)])
        assert words in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_without_labels_the_command_says_what_can_be_said(
    phantom_root: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root,) = phantom_root.iterdir()
    shutil.copytree(root / "train" / "good", tmp_path / "plain")
    main(["compare", str(tmp_path / "plain"), "--models", str(config), "--seeds", "1", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "nothing can be said of real lesions" in printed
    assert "| Padim | 0    | ." in printed
    assert not (tmp_path / "out" / "scores.csv").exists()


def test_configurations_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Runs of one class leave files of one name; their seeds are not those of one method."""
    content = {"model": {"class_path": "anomalib.models.Patchcore"}}

    def names(*places: str, changes: dict[int, str] | None = None) -> list[str]:
        paths = {row: {"model": {"class_path": path}} for row, path in (changes or {}).items()}
        models = [Configured(paths.get(row, content), str(tmp_path / place)) for row, place in enumerate(places)]
        return trials_module._names(models)

    assert names("x/v0/config.yaml", "x/v1/config.yaml") == ["Patchcore (v0)", "Patchcore (v1)"]
    assert names("x/v0/config.yaml", "y/v0/config.yaml", "y/v1/config.yaml", "mine.yaml", changes={3: "a.Padim"}) == [
        *("Patchcore (x/v0)", "Patchcore (y/v0)", "Patchcore (y/v1)"),
        "Padim",
    ]
    assert names("config.yaml", "v0/config.yaml") == ["Patchcore (config.yaml)", "Patchcore (v0/config.yaml)"]
    assert names("a.yaml", "a.yml") == ["Patchcore (a.yaml)", "Patchcore (a.yml)"]
    assert names("x/a.yaml", "y/b.yaml") == ["Patchcore (a)", "Patchcore (b)"]
    with pytest.raises(InputError, match=r"more than once; name each configuration once"):
        names("x/v0/config.yaml", "x/../x/v0/config.yaml")


def test_slices_of_a_file_are_told_apart_in_the_scores(tmp_path: Path) -> None:
    batch = SimpleNamespace(image_path=["a.nii", "a.nii"], frames=[3, 4], pred_score=torch.tensor([0.1, 0.2]))
    batch.gt_label, batch.pred_label, batch.anomaly_map, batch.gt_mask = torch.tensor([0, 1]), None, None, None
    of_volumes, of_pictures = outcome_of(batch), outcome(scores(0, 1))
    write_scores([Trial("Padim", 0, of_volumes, of_pictures, CardFacts({}))], tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["frame"]) for row in rows[:2]] == [("a.nii", "3"), ("a.nii", "4")]
    assert {row["frame"] for row in rows[2:]} == {""}


@pytest.fixture
def command(phantom_root: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that compares, but trains nothing."""
    (root,) = phantom_root.iterdir()
    (trial,) = trials(0, 1, seeds=1)
    monkeypatch.setattr("anomalib_msacl.comparison.run_trials", lambda *_: iter([trial]))
    return ["compare", str(root), "--models", str(config), "--out", str(tmp_path / "out")]


def test_a_comparison_is_not_written_over_that_of_another_command(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command, "--seeds", "1"])
    main([*command, "--seeds", "1"])  # once more, perhaps because it was stopped
    before = (tmp_path / "out" / "comparison.md").read_text()
    with pytest.raises(SystemExit):
        main([*command, "--seeds", "2"])
    assert "set --out to another folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "comparison.md").read_text() == before


def test_a_comparison_is_not_written_over_by_one_of_an_edited_configuration(
    command: list[str], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    before, content = (tmp_path / "out" / "comparison.md").read_text(), config.read_text()
    config.write_text(f"# A comment, and data, which are not used.\ndata: other\n{content}")
    main(command)
    assert (tmp_path / "out" / "comparison.md").read_text() == before
    config.write_text(content.replace("n_features: 10", "n_features: 11"))
    with pytest.raises(SystemExit):
        main(command)
    assert "this command with other configurations made it; set --out to another folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "comparison.md").read_text() == before


def test_a_kind_of_defect_without_masks_is_named(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_set(tmp_path / "set")
    (tmp_path / "set" / "test" / "scratch").mkdir()
    grey_one(tmp_path / "set" / "test" / "scratch" / "0.png")
    (trial,) = trials(0, 1, seeds=1)
    monkeypatch.setattr("anomalib_msacl.comparison.run_trials", lambda *_: iter([trial]))
    main(["compare", str(tmp_path / "set"), "--models", str(config), "--seeds", "1", "--out", str(tmp_path / "out")])
    line = "Pixels are not compared: there are no masks in ground_truth for test/scratch."
    assert line in capsys.readouterr().err
    assert line in (tmp_path / "out" / "comparison.md").read_text()


def test_a_configuration_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("data: {}\n")
    for arguments in ([str(path)], ["msacl_nothing"]):
        with pytest.raises(SystemExit):
            main(["compare", str(tmp_path), "--models", *arguments])
        assert capsys.readouterr().err.startswith("anomalib-msacl: error: ")
