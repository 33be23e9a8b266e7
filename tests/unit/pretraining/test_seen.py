"""What a user sees of a pre-training: curves, choice and a picture in the loggers, one bar, each message once."""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import rank_zero
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from rich.console import Console
from rich.logging import RichHandler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomalib_msacl import MsaclPretraining
from anomalib_msacl.compat import inner_trainer
from anomalib_msacl.pretraining.lightning_model import make_trainer
from anomalib_msacl.pretraining.loggers import UnderPrefix, picture_of, show_lesions, tell_choice
from anomalib_msacl.pretraining.messages import each_message_once
from anomalib_msacl.pretraining.questions import Score
from anomalib_msacl.pretraining.synthesis import Synthesis, SyntheticBatch
from tests.conftest import make_recipe, phantom

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def batch() -> SyntheticBatch:
    return Synthesis(make_recipe(classes=3))(torch.rand(5, 3, 48, 48))


def test_curves_choice_and_a_picture_reach_the_loggers_of_the_run_and_one_bar_is_shown(
    make_patchcore: Make, make_engine: Make, phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(max_steps=10, batch_size=4, accumulate=1, evaluations=1, evaluation_images=4, centre_images=4)
    board = TensorBoardLogger(tmp_path / "board", name="run")
    callback = MsaclPretraining("random", recipe, tmp_path / "msacl")
    engine = make_engine(callbacks=[callback], max_epochs=1, logger=board, enable_progress_bar=True)
    engine.fit(make_patchcore(), datamodule=phantom(phantom_root, seed=0))
    board.finalize("success")

    found = EventAccumulator(board.log_dir, {"images": 0, "scalars": 0, "tensors": 0}).Reload()
    names = found.Tags()["scalars"]
    assert {"msacl/train_loss", "msacl/learning_rate", "msacl/held_out_image_auroc"} <= set(names)
    assert not [name for name in names if name.removeprefix("msacl/").startswith("train_") and "msacl" not in name]
    scores = {
        name: found.Scalars(f"msacl/choice/{name}/image_auroc")[0].value for name in ("untouched", "step 10", "kept")
    }
    with (callback.directory / "candidates.csv").open() as file:
        table = {row["candidate"]: row for row in csv.DictReader(file)}
    assert scores["step 10"] == pytest.approx(float(table["step 10"]["image_auroc"]), abs=1e-5)
    (kept,) = [name for name, row in table.items() if row["kept"] == "True"]
    assert scores["kept"] == pytest.approx(float(table[kept]["image_auroc"]), abs=1e-5)
    picture = Image.open(io.BytesIO(found.Images("msacl/lesions")[0].encoded_image_string))
    own = next((tmp_path / "msacl" / "logs").rglob("lesions.png"))
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(own)))
    said = found.Tensors("msacl/verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    assert said in (callback.directory / "README.md").read_text()

    shown = "".join(capsys.readouterr())
    assert "MSACL: choice" in shown
    assert "10/10" in shown
    assert "/-2" not in shown


def test_a_row_of_the_picture_is_an_image_with_more_and_more_lesions(batch: SyntheticBatch) -> None:
    """Outlines are drawn beside the lesions, and everything else is as it is."""
    picture, side = picture_of(batch, images=2), 48
    assert picture.shape == (2 * (side + 2) + 2, 3 * (side + 2) + 2, 3)
    for row, owner in enumerate(batch.owners.unique()[:2]):
        for column in range(3):
            index = int(((batch.owners == owner) & (batch.classes == column)).nonzero()[0])
            top, left = row * (side + 2) + 2, column * (side + 2) + 2
            cell = torch.from_numpy(picture[top : top + side, left : left + side]).permute(2, 0, 1)
            expected = (batch.images[index].clamp(0, 1) * 255).round().byte()
            other = (cell != expected).any(dim=0)
            assert bool(other.any()) == bool(column)
            assert not (other & (batch.masks[index, 0] > 0)).any()


def test_loggers_of_other_kinds_get_picture_and_verdict_by_their_own_methods(batch: SyntheticBatch) -> None:
    """Weights & Biases by Lightning's logger, MLflow by its client; what is called exists there."""
    called: dict[str, tuple[Any, ...]] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: called.update({name: (*args, *kwargs.values())})

    methods = {name: record(name) for name in ("log_image", "log_text", "log_metrics")}
    board = SimpleNamespace(**methods)
    assert all(callable(getattr(WandbLogger, name)) for name in methods)
    show_lesions([board], batch, 3)
    tell_choice([board], {"step 1": Score(0.75, 0.5)}, "step 1", "It is kept.", 1)
    assert called["log_image"][0] == "msacl/lesions"
    assert called["log_text"] == ("msacl/verdict", ["text"], [["It is kept."]], 1)
    assert called["log_metrics"][0]["msacl/choice/kept/image_auroc"] == 0.75
    client = SimpleNamespace(log_image=record("image"), log_text=record("text"))
    server = SimpleNamespace(experiment=client, run_id="7", log_metrics=record("metrics"))
    show_lesions([server], batch, 0)
    tell_choice([server], {}, None, "Nothing.", 0)
    assert called["image"][0] == "7"
    assert called["image"][2] == "msacl/lesions.png"
    assert called["text"] == ("7", "Nothing.", "msacl/verdict.txt")
    assert "metrics" not in called


def test_the_outer_logger_is_neither_closed_nor_given_other_settings(tmp_path: Path) -> None:
    outer = CSVLogger(tmp_path)
    inner = UnderPrefix(outer)
    inner.log_hyperparams({"a": 1})
    inner.log_metrics({"loss": 0.5, "epoch": 3}, 4)
    inner.finalize("success")
    outer.log_metrics({"other": 1.0}, 5)
    outer.save()
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"msacl/loss": "0.5", "other": "", "step": "4"}, {"msacl/loss": "", "other": "1.0", "step": "5"}]


@pytest.fixture
def as_anomalib_logs() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """The two handlers that anomalib's command line gives the root logger."""
    root, texts = logging.getLogger(), (io.StringIO(), io.StringIO())
    before, level = root.handlers[:], root.level
    root.handlers = [logging.StreamHandler(texts[0]), RichHandler(console=Console(file=texts[1], width=200))]
    root.setLevel(logging.INFO)
    yield texts
    root.handlers, root.level = before, level


def test_each_message_is_written_once(as_anomalib_logs: tuple[io.StringIO, io.StringIO]) -> None:
    each_message_once()
    each_message_once()
    logging.getLogger("anomalib_msacl.pretraining").info("of ours")
    logging.getLogger("anomalib.engine").info("of others")
    plain, rich = (text.getvalue() for text in as_anomalib_logs)
    assert (plain + rich).count("of ours") == 1
    assert (plain + rich).count("of others") == 2  # is not ours to change


def test_a_trainer_inside_of_another_tells_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    logger: logging.Logger = cast("Any", rank_zero).rank_zero_module.log
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(told)])
    monkeypatch.setattr(logger, "level", logging.INFO)
    with inner_trainer(), warnings.catch_warnings(record=True) as caught:
        make_trainer(make_recipe())
        warnings.warn("Found 3 module(s) in eval mode at the start of training.", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(each.message) for each in caught] == ["something else"]
    assert not told.getvalue()
    make_trainer(make_recipe())
    assert "GPU available" in told.getvalue()
