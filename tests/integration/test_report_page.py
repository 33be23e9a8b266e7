"""The report of a tiny run: it needs no network, shows what there is, and says what there is not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI

from anomalib_msacl import InputError
from anomalib_msacl.backbone.card import read_card
from anomalib_msacl.report.page import write_report
from anomalib_msacl.report.run import Run
from tests.integration.test_cli import PHANTOM, TRAINER, at_size
from tests.unit.test_comparison import RECIPE

SECTIONS = ["What was trained", "Curves of the pre-training", "Choice of the weights", "Lesions that were trained with"]
SECTIONS += ["Feature space before and after", "Scores of the test images", "Best and worst images"]
SECTIONS += ["Versions, and how to make this run again"]
CONFIG = Path(__file__).parents[2] / "configs" / "msacl_padim.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of the command line, in which the tests work."""
    place = tmp_path_factory.mktemp("run")
    content = yaml.safe_load(CONFIG.read_text())
    content["model"]["init_args"] |= {"backbone": "test_resnet", "layers": ["layer2", "layer3"], "n_features": 10}
    content["trainer"]["callbacks"][0]["init_args"] |= {"weights": "random"}
    # Curves need two points, and losses have one for every ten steps.
    choice = {"choice": {"evaluations": 2, "images": 4}}
    content["trainer"]["callbacks"][0]["init_args"]["recipe"] = RECIPE | choice | {"max_steps": 20}
    scores = {"class_path": "anomalib_msacl.ScoresCsv", "init_args": {"file": str(place / "scores.csv")}}
    content["trainer"]["callbacks"].append(scores)
    (place / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        AnomalibCLI(["train", "--config", "tiny.yaml", *TRAINER, *PHANTOM, *at_size(64)])
        yield next((place / "results" / "Padim" / "phantom_fundus").glob("v0"))


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]


def test_the_report_shows_everything_and_loads_nothing(run: Path) -> None:
    scores = run.parents[3] / "scores.csv"
    before = scores.read_bytes()
    text = write_report(run).read_text(encoding="utf-8")
    assert scores.read_bytes() == before  # of the run, not of the untouched backbone
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    page = Page(text)
    assert all(each.startswith(("data:", "#")) for each in page.loads)
    assert not re.search(r"@import|url\((?!#|\"#)", text)
    assert page.names.count("svg") == 5  # two curves, features, histograms, ROC
    assert "not at hand" not in text
    assert "untouched backbone, 0" in text or "untouched backbone: " in text
    facts = read_card(next((run.parents[2] / "msacl").glob("test_resnet-*")))
    assert facts is not None
    assert facts.verdict.replace(">", "&gt;") in text
    for name, image, _ in facts.candidates:
        assert f"<td>{name}</td><td>{image:.3f}</td>" in text
    # Ids would clash between charts unless only those stay that are referred to.
    ids = re.findall(r'<g id="([^"]*)"', text)
    assert not [each for each in ids if each.startswith(("figure", "axes"))]


def test_the_card_tells_what_was_kept(run: Path) -> None:
    (weights,) = (run.parents[2] / "msacl").glob("test_resnet-*")
    facts = read_card(weights)
    assert facts is not None
    assert facts.kept in {name for name, _, _ in facts.candidates}
    assert (facts.steps, facts.data, facts.images) == (20, "phantom_fundus", "12")
    assert facts.recipe["batch_size"] == 4
    assert Run.open(run).model_name == "Padim"


def test_a_run_without_test_images_has_a_report(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "v0"
    shutil.copytree(run, copy)
    content = yaml.safe_load((copy / "config.yaml").read_text())
    (images,) = (run.parents[3] / "datasets" / "phantom").iterdir()
    arguments = {"name": "normal", "root": str(images), "normal_dir": "train/good", "test_split_mode": "none"}
    arguments |= {"val_split_mode": "none", "num_workers": 0}
    content["data"] = {"class_path": "anomalib_msacl.data.CheckedFolder", "init_args": arguments}
    content["trainer"]["callbacks"][0]["init_args"]["root"] = str(run.parents[2] / "msacl")
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    text = write_report(copy).read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    assert "The run has no test images, so nothing can be scored." in text
    assert "is not where the run left it" not in text  # the checkpoint tells which weights it holds


def test_what_is_missing_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "v0"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "weights")
    monkeypatch.chdir(tmp_path)  # weights and images are named relative to another folder
    text = write_report(copy, tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    assert "The run has no checkpoint in weights/lightning, so nothing can be scored." in text
    assert "The folder of the pre-trained weights is not where the run left it" in text
    with pytest.raises(InputError, match=r"has no config\.yaml"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        write_report(copy, tmp_path / "no" / "report.html", before=False)
