"""``predict`` by the flags of docs/deployment.md: scores in a file, maps, and the files that images came from."""

from __future__ import annotations

import csv
import pickle
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib import models
from anomalib.data import Folder
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl.checkpoints import read_checkpoint, restored
from anomalib_msacl.cli import main
from anomalib_msacl.data import MedicalFolder
from anomalib_msacl.errors import InputError
from anomalib_msacl.scores import COLUMNS, ScoresCsv, rows
from anomalib_msacl.screening.torch_scorer import TorchScorer
from tests.medical_files import tissue, write_dicom

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
FLAGS = {"anomalib_msacl.Msacl": ["--model.backbone", "resnet18", "--model.weights", "random"]}
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
FOLDERS: dict[str, Any] = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/lesion"}


def image(seed: int, spoilt: bool) -> np.ndarray:
    """Tissue of 12 bits, with a bright square in it or not."""
    pixels = tissue(seed)
    pixels[20:36, 24:44] = 1500 if spoilt else pixels[20:36, 24:44]
    return pixels


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in pictures and in DICOM, the last of them in a file of two frames."""
    root = tmp_path_factory.mktemp("images")
    places = [
        ("train/good", range(8), False),
        ("test/good", range(20, 23), False),
        ("test/lesion", range(30, 33), True),
    ]
    for place, seeds, spoilt in places:
        for seed in seeds:
            pixels, picture = image(seed, spoilt), root / "png" / place / f"{seed}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels // 8).astype(np.uint8)).convert("RGB").save(picture)
            pixels = np.stack([pixels, image(seed + 50, spoilt)]) if seed == 32 else pixels
            write_dicom(root / "dicom" / place / f"{seed}.dcm", pixels, PatientID=f"P{seed}")
    return root


def build(name: str, make_msacl: Callable[..., Any], **options: Any) -> Any:
    """Return a model with settings that the flags of the page do not name."""
    torch.manual_seed(0)
    if name == "anomalib_msacl.Msacl":
        return make_msacl(**options)
    pre_processor = PreProcessor(Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)]))
    given = {"backbone": "test_resnet", "layers": ["layer2", "layer3"], "pre_trained": False, **options}
    given |= {"n_features": 20} if name.endswith("Padim") else {"coreset_sampling_ratio": 0.5}
    return getattr(models, name.rpartition(".")[2])(pre_processor=pre_processor, **given)


def by_flags(name: str, checkpoint: Path, images: Path) -> list[str]:
    """Return the command of the page, for another model and other files."""
    (block,) = re.findall(r"```bash\nanomalib-msacl (predict.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "))
    changes = {"model.ckpt": str(checkpoint), "IMAGES": str(images), "anomalib.models.Patchcore": name}
    words = [changes.get(word, word) for word in words]
    if name in FLAGS:
        start = words.index("--model.backbone")
        words[start : start + 4] = FLAGS[name]
    return [*words, *QUIET]


def table(folder: Path) -> list[dict[str, str]]:
    """Read the scores below a folder."""
    (path,) = folder.rglob("scores.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["anomalib.models.Patchcore", "anomalib.models.Padim", "anomalib_msacl.Msacl"])
def test_flags_of_the_page_predict_as_the_trained_model(
    root: Path,
    name: str,
    make_msacl: Callable[..., Any],
    make_engine: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model, engine = build(name, make_msacl, visualizer=False), make_engine()
    data = Folder("mine", root=root / "png", **FOLDERS, num_workers=0)
    data = data if "Msacl" not in name else Folder("mine", root=root / "png", **FOLDERS, num_workers=0, seed=0)
    data.val_split_mode = "same_as_test" if "Msacl" not in name else "from_train"
    engine.fit(model, datamodule=data)
    expected = {
        batch.image_path[0]: (batch.pred_score.item(), bool(batch.pred_label.item()))
        for batch in engine.predict(model, data_path=root / "png" / "test")
    }
    main(by_flags(name, Path(engine.best_model_path), root / "png" / "test"))
    found = table(tmp_path / "results")
    assert [row["file"] for row in found] == list(expected)
    assert len({row["score"] for row in found}) > 2
    for row in found:
        score, abnormal = expected[row["file"]]
        assert float(row["score"]) == pytest.approx(score, abs=1e-5)
        assert (row["label"], row["frame"], row["truth"]) == ("abnormal" if abnormal else "normal", "", "")
    pictures = list((tmp_path / "results").rglob("images/**/*.png"))
    assert {picture.name for picture in pictures if picture.is_file()} == {Path(path).name for path in expected}


def test_medical_files_are_named_in_predictions_and_scores(
    root: Path, make_engine: Callable[..., Any], make_msacl: Callable[..., Any], tmp_path: Path
) -> None:
    model = build("Padim", make_msacl)
    engine = make_engine(callbacks=[ScoresCsv(tmp_path / "mine.csv")], logger=False)
    data = MedicalFolder("mine", root / "dicom", **FOLDERS, val_split_mode="same_as_test", eval_batch_size=2)
    engine.fit(model, datamodule=data)
    predicted = engine.predict(model, datamodule=data)
    files = sorted((root / "dicom" / "test").rglob("*.dcm"))
    expected = [(str(file), 0) for file in files] + [(str(files[-1]), 1)]
    pairs = [(path, frame) for batch in predicted for path, frame in zip(batch.image_path, batch.frames, strict=True)]
    assert sorted(pairs) == sorted(expected)
    with (tmp_path / "mine.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert [(row["file"], int(row["frame"])) for row in found] == pairs
    scores = torch.cat([batch.pred_score.flatten() for batch in predicted]).tolist()
    assert [float(row["score"]) for row in found] == scores
    assert [row["truth"] for row in found] == ["abnormal" if "lesion" in path else "normal" for path, _ in pairs]
    labels = torch.cat([batch.pred_label.flatten() for batch in predicted]).tolist()
    assert [row["label"] == "abnormal" for row in found] == labels
    maps = [path.name for path in (tmp_path / "results").rglob("*.png")]
    assert sorted(maps) == sorted([f"{file.name}.png" for file in files[:-1]] + [f"32.dcm_000{i}.png" for i in (0, 1)])
    again = pickle.loads(pickle.dumps(predicted[0]))  # as a process that loads data does
    assert (again.image_path, again.frames) == (predicted[0].image_path, predicted[0].frames)
    for item in again.items:
        assert Image.open(item.image_path).size == (64, 64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of PatchFlow at a size that is not its default; its network depends on the size."""
    return save(patchflow(), tmp_path_factory.mktemp("checkpoint") / "model.ckpt")


def patchflow(size: tuple[int, int] = (64, 64), **options: Any) -> Any:
    """Build PatchFlow."""
    torch.manual_seed(0)
    transform = models.Patchflow.configure_pre_processor(size)
    given = {"backbone": "test_resnet", "pre_trained": False, "num_scales": 2, "pre_processor": transform}
    return models.Patchflow(**(given | options)).eval()


def save(model: Any, path: Path) -> Path:
    trainer = Trainer(barebones=True, accelerator="cpu", devices=1)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path


def test_a_model_comes_back_with_the_size_and_settings_of_its_checkpoint(checkpoint: Path) -> None:
    kind = models.Patchflow
    found = restored(kind, checkpoint, read_checkpoint(checkpoint, [kind]), "--model").eval()
    assert found.input_size == (64, 64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.model(images).anomaly_map, patchflow().model(images).anomaly_map)


def test_screening_takes_a_network_of_the_size_of_its_checkpoint(tmp_path: Path) -> None:
    model = patchflow()
    for name, value in {"_image_threshold": 0.2, "image_min": 0.0, "image_max": 1.0}.items():
        getattr(model.post_processor, name).fill_(value)
    scorer = TorchScorer(save(model, tmp_path / "model.ckpt"), threads=1)
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        assert (
            scorer.score(image.numpy()).raw == model.model(model.pre_processor.transform(image[None])).pred_score.item()
        )


def test_checkpoints_that_do_not_fit_are_told(checkpoint: Path, tmp_path: Path, root: Path) -> None:
    content = read_checkpoint(checkpoint, [models.Patchflow])
    with pytest.raises(
        InputError, match=r"model\.ckpt is no checkpoint of Padim .*the class that was trained by --mod"
    ):
        restored(models.Padim, checkpoint, content, "--model")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "plain.pt")
    picture = next((root / "png").rglob("*.png"))
    for path, said in ((picture, "is no checkpoint: name"), (tmp_path / "gone", r"cannot be read \(No such file")):
        with pytest.raises(InputError, match=said):
            read_checkpoint(path, [models.Padim])
    with pytest.raises(InputError, match="no checkpoint of Lightning"):
        read_checkpoint(tmp_path / "plain.pt", [models.Padim])


def test_scores_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"ScoresCsv cannot write .*scores\.csv .*set file to another path"):
        ScoresCsv(tmp_path / "file" / "scores.csv").on_predict_start(Trainer(barebones=True), models.Padim)


def test_a_model_without_a_threshold_has_rows_without_labels() -> None:
    from anomalib.data import ImageBatch

    batch = ImageBatch(image=torch.rand(2, 3, 4, 4), pred_score=torch.tensor([0.25, 3.5]))
    assert list(rows(batch)) == [("", "", 0.25, "", ""), ("", "", 3.5, "", "")]
