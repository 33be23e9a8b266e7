"""The command line of the package: what it prints, how it fails, how fast it answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI
from anomalib.data import AnomalibDataModule
from anomalib.models import Padim
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from anomalib_msacl.anomalib_cli import CommandLine
from anomalib_msacl.cli import config_path, main
from anomalib_msacl.errors import InputError, one_line_errors, sentence_of, show_in_one_line
from anomalib_msacl.report.config import config_of
from anomalib_msacl.scores import ScoresCsv


def test_the_configurations_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "msacl_padim"])
    assert Path(capsys.readouterr().out.strip()) == config_path("msacl_padim.yaml")
    main(["configs"])
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == {path.stem for path in config_path("msacl_padim").parent.glob("*.yaml")}
    assert listed["msacl_padim"] == "MSACL pre-training, then PaDiM, on phantom images"
    with pytest.raises(SystemExit) as caught:
        main(["configs", "nothing"])
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("anomalib-msacl: error: there is no configuration 'nothing'; there are msacl_data_dicom, ")
    assert told.count("\n") == 1


def test_a_configuration_is_copied_to_a_new_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    main(["configs", "msacl_padim", "--copy", str(target)])
    assert target.read_text() == config_path("msacl_padim").read_text()
    target.write_text("changed")
    for arguments in (["msacl_padim", "--copy", str(target)], ["msacl_padim", "--copy", str(tmp_path / "no" / "x")]):
        with pytest.raises(SystemExit):
            main(["configs", *arguments])
        assert "name " in capsys.readouterr().err
    assert target.read_text() == "changed"


@pytest.mark.parametrize(
    ("model", "data"), [("msacl_padim", "msacl_data_folder"), ("msacl_pretrain", "msacl_data_dicom")]
)
def test_two_configurations_make_one(model: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", model, f"--config={data}", "--data.init_args.root", "ROOT", "--print_config"])
    assert caught.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)
    parts = [yaml.safe_load(config_path(name).read_text()) for name in (model, data)]
    assert found["model"]["class_path"] == parts[0]["model"]["class_path"]
    expected = parts[1]["data"]["init_args"] | {"root": "ROOT"}
    assert {name: found["data"]["init_args"].get(name) for name in expected} == expected


def test_the_threshold_of_the_medical_configuration_leaves_the_command_line_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its comment is taken away, and the options of the pre-training still reach the pre-training."""
    lines = config_path("msacl_padim_dicom").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if "# - class_path: anomalib_msacl.Norm" in line)
    for index in (start, start + 1):
        lines[index] = lines[index].replace("# ", "", 1)
    (tmp_path / "mine.yaml").write_text("\n".join(lines), encoding="utf-8")
    option = "--trainer.callbacks.init_args.recipe.max_steps"
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", str(tmp_path / "mine.yaml"), option, "7", "--print_config"])
    assert caught.value.code == 0
    threshold, pretraining = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert threshold["class_path"].endswith("NormalsThreshold")
    assert threshold["init_args"]["specificity"] == 0.95
    assert pretraining["init_args"]["recipe"]["max_steps"] == 7


def test_what_configurations_have_in_common_is_the_same() -> None:
    content = {path.stem: yaml.safe_load(path.read_text()) for path in config_path("msacl_padim").parent.glob("*.yaml")}
    assert content["msacl_patchcore"]["model"] == content["msacl_patchcore_folder"]["model"]
    assert content["msacl_data_dicom"]["data"] == content["msacl_padim_dicom"]["data"]
    callbacks = {
        str(callback["init_args"])
        for name, found in content.items()
        for callback in (found.get("trainer") or {}).get("callbacks", [])
        if callback["class_path"] == "anomalib_msacl.MsaclPretraining" and name != "msacl_paper"
    }
    assert len(callbacks) == 1


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ([], 0, "msacl_padim "),
        (["msacl_padim"], 0, "msacl_padim.yaml"),
        (["--help"], 0, "lesions"),
        (["report", "."], 1, ". has no config.yaml; name the folder"),
        (["compare", "nowhere"], 1, "nowhere is no folder; name one of normal images"),
        (["lesions", "nowhere"], 1, "nowhere is no folder; name one of normal images"),
    ],
)
def test_the_module_answers_without_importing_torch(
    words: list[str], status: int, expected: str, tmp_path: Path
) -> None:
    """What takes long is the import of torch and anomalib: neither is there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'anomalib', 'timm', 'cv2', 'pydicom', 'nibabel', 'tifffile', 'lightning'):\n"
        "    sys.modules[name] = None\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    command = [sys.executable, "-m", "anomalib_msacl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert expected in done.stdout + done.stderr


def test_an_input_error_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors("program"):
        raise InputError("the value\nis wrong")
    assert capsys.readouterr().err == "program: error: the value is wrong\n"
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("mine")


def test_a_message_that_another_error_quotes_is_found() -> None:
    def quote() -> None:
        message = str(InputError("recipe.x is 3"))
        raise ValueError(f"Errors:\n  - {message}\nGiven value: 3")

    with pytest.raises(SystemExit) as caught, one_line_errors():
        quote()
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("Unknown model (resnt18)"), "unknown backbone 'resnt18'"),
        (type("LocalEntryNotFoundError", (Exception,), {})("offline"), "the model hub is out of reach"),
        (ValueError("Path contains non-printable characters: /a/Prüfling"), "anomalib reads paths of up to 512 plain"),
        (FileNotFoundError("Path does not exist: /a/b"), "/a/b is missing: name a file or folder that exists"),
        (ValueError("Found 0 images in /a/b"), "/a/b has no images that anomalib reads"),
        (NotADirectoryError(20, "Not a directory", "/a/b"), "/a/b: a part of this path is a file and no folder"),
        (NotADirectoryError(20, "Not a directory"), ""),
        (FileNotFoundError(2, "No such file or directory"), ""),
        (ValueError("something else"), ""),
    ],
)
def test_the_commonest_slips_are_told_whoever_raises_them(error: Exception, expected: str) -> None:
    assert sentence_of(error).startswith(expected)
    assert bool(sentence_of(error)) is bool(expected)


def test_the_hook_serves_one_error_and_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, value, trace: seen.append(value))
    previous, error = sys.excepthook, InputError("told once")
    show_in_one_line(error)
    sys.excepthook(InputError, error, None)
    assert capsys.readouterr().err == "anomalib-msacl: error: told once\n"
    assert sys.excepthook is previous
    show_in_one_line(error)
    other = KeyError("another")
    sys.excepthook(KeyError, other, None)
    assert seen == [other]
    assert sys.excepthook is previous
    show_in_one_line(KeyError("not of the input"))
    assert sys.excepthook is previous


def test_an_error_in_a_constructor_named_on_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    config = parser.parse_args(["--data=anomalib_msacl.data.Phantom", "--data.init_args.kind=liver"])
    with pytest.raises(SystemExit), one_line_errors():
        parser.instantiate_classes(config)
    expected = "anomalib-msacl: error: Phantom's kind is 'liver': choose one of fundus, brain, chest\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("given", [None, Callback(), [Callback()], ScoresCsv(), [Callback(), ScoresCsv()]])
def test_predict_writes_scores_beside_no_callback_one_or_a_list(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnomalibCLI, "instantiate_engine", lambda _: None)
    command = CommandLine.__new__(CommandLine)
    command.subcommand, trainer = "predict", {"callbacks": given, "strategy": "auto"}
    command.config_init = {"predict": {"trainer": trainer}}
    command.instantiate_engine()
    found = trainer["callbacks"] if isinstance(trainer["callbacks"], list) else [trainer["callbacks"]]
    assert sum(isinstance(each, ScoresCsv) for each in found) == 1
    assert set(given if isinstance(given, list) else [given]) - {None} <= set(found)


@pytest.mark.parametrize("subcommand", ["train", "test"])
def test_the_configuration_of_a_training_with_a_logger_is_where_report_looks(
    subcommand: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnomalibCLI, "instantiate_engine", lambda _: None)
    parser = ArgumentParser()
    parser.add_argument("--word")
    logger, command = CSVLogger(tmp_path / "logs"), CommandLine.__new__(CommandLine)
    command.subcommand, command.subcommand_parsers = subcommand, {subcommand: parser}
    command.config = {subcommand: parser.parse_args(["--word=mine"])}
    trainer: dict[str, Any] = {"callbacks": None, "strategy": "auto", "logger": logger}
    command.config_init = {subcommand: {"trainer": trainer}}
    command.instantiate_engine()
    made = Trainer(default_root_dir=tmp_path / "results", logger=logger, accelerator="cpu")
    for callback in trainer["callbacks"] or []:
        callback.setup(made, Padim.__new__(Padim), "fit")
    assert len(trainer["callbacks"] or []) == (subcommand == "train")
    if subcommand == "train":
        assert yaml.safe_load((config_of(tmp_path / "results")).read_text()) == {"word": "mine"}


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork_find_unused_parameters_true", "ddp_notebook"])
def test_ways_to_start_processes_that_a_command_cannot_go_are_refused(name: str) -> None:
    command = CommandLine.__new__(CommandLine)
    command.subcommand, command.config_init = "fit", {"fit": {"trainer": {"callbacks": None, "strategy": name}}}
    with pytest.raises(InputError, match=f"{name} cannot start the processes .* set it to ddp"):
        command.instantiate_engine()


def test_tasks_of_a_job_that_lightning_refuses_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("NTASKS", "2"), ("NTASKS_PER_NODE", "2"), ("NNODES", "1"), ("JOB_NAME", "msacl")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SystemExit), one_line_errors():
        SLURMEnvironment().validate_settings(num_devices=4, num_nodes=1)
    assert "anomalib-msacl: error: You set `devices=4` in Lightning" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(SystemExit), one_line_errors():
        SLURMEnvironment()
    assert "Use `--ntasks-per-node=2` instead" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit), one_line_errors():
        Padim("test_resnet", ["layer2"], pre_trained=True)
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("anomalib-msacl: error: the model hub is out of reach")
    assert "pre_trained: false" in told


def test_a_process_is_as_it_was_until_an_error_of_the_input_which_is_one_line(tmp_path: Path) -> None:
    """Importing and building change nothing of it; then the error is the last thing that ``anomalib train`` prints."""
    script = (
        "import sys, timm.models.vision_transformer as vit\n"
        "hook, resample = sys.excepthook, vit.resample_abs_pos_embed\n"
        "from anomalib_msacl import MedMix, Msacl, MsaclPretraining, Recipe\n"
        "import torch\n"
        "model = Msacl('test_vit', 'random', image_size=96, detector=False)\n"
        "callback = MsaclPretraining(weights='random')\n"
        "model(torch.rand(1, 3, 96, 96))\n"
        "assert sys.excepthook is hook\n"
        "assert vit.resample_abs_pos_embed is resample\n"
        "from anomalib.engine import Engine\n"
        "from anomalib.models import Padim\n"
        "from anomalib_msacl.data import Phantom\n"
        "data = Phantom('brain', image_size=64, train_images=2, test_images=4)\n"
        "model = Padim('test_resnet', ['layer2'], pre_trained=False, n_features=10)\n"
        "Engine(callbacks=[callback], accelerator='cpu').train(model, datamodule=data)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith("anomalib-msacl: error: the datamodule 'phantom_brain' has only 2")
