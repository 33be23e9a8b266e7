"""What the documentation says exists: links, settings, names, files; and its examples run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import logging
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from anomalib_msacl.lesions import FAMILIES, LesionMixture
from anomalib_msacl.recipe import Recipe
from tests.unit.lesions.pictures import seeded, smooth
from tests.unit.test_structure import ORDER, PACKAGE, imported

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), ROOT / "benchmarks" / "compare.yaml"])
NOW = [path for path in [*PAGES, *CONFIGS] if path.name != "CHANGELOG.md"]  # which also tells names of the past


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def recipes(value: Any) -> list[Any]:
    """Return what stands under ``recipe`` anywhere in plain data."""
    if isinstance(value, list):
        return [found for each in value for found in recipes(each)]
    if not isinstance(value, dict):
        return []
    own = [value["recipe"]] if isinstance(value.get("recipe"), dict) else []
    return own + [found for each in value.values() for found in recipes(each)]


def setting_exists(words: list[str]) -> bool:
    """Whether a dotted setting of the recipe exists."""
    value: Any = Recipe()
    for word in words:
        if not hasattr(value, "__dataclass_fields__") or word not in value.__dataclass_fields__:
            return False
        value = getattr(value, word)
    return True


def name_exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    words = name.split(".")
    for number in range(len(words), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(words[:number]))
        except ModuleNotFoundError:
            continue
        for word in words[number:]:
            if not hasattr(value, word):
                return False
            value = getattr(value, word)
        return True
    return False


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    first = blocks(ROOT / "README.md", "bash")[0].splitlines()
    assert [" ".join(line.split()[:2]) for line in first] == ["make demo", "make test"]


def script(name: str) -> Any:
    """Return a script as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_of_the_recipe_is_up_to_date() -> None:
    found = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert found == script("recipe_table").page(), "run: python scripts/recipe_table.py > docs/recipe.md"


def test_the_pages_of_all_names_are_up_to_date() -> None:
    docs = ROOT / "docs"
    found = [docs / "api.md", *(docs / "api").glob("*.md")]
    texts = {path.relative_to(docs).as_posix(): path.read_text(encoding="utf-8") for path in found}
    assert texts == script("api_page").pages(), "run: python scripts/api_page.py"


def test_the_summaries_of_the_results_are_those_of_the_tables() -> None:
    summary = script("results_summary")
    for path, text in summary.pages(summary.figures()).items():
        assert path.read_text(encoding="utf-8") == text, "run: python scripts/results_summary.py"


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", NOW, ids=named)
def test_settings_of_the_recipe_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for found in re.findall(r"(?<![\w./])(?!anomalib_msacl\.)(?:[\w.]+\.)?recipe\.([a-z_]+(?:\.[a-z_]+)*)", text):
        words = found.split(".")
        assert words[0] in {"py", "md"} or setting_exists(words), f"recipe.{found}"


@pytest.mark.parametrize("path", NOW, ids=named)
def test_recipes_in_yaml_can_be_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        found = recipes(yaml.safe_load(text))
    else:
        found = [each for block in blocks(path, "yaml") for each in recipes(yaml.safe_load(block))]
        found += [each for line in re.findall(r"`(recipe: \{.*?\})`", text) for each in recipes(yaml.safe_load(line))]
        parts = "|".join(name for name, kind in vars(Recipe()).items() if hasattr(kind, "__dataclass_fields__"))
        found += [yaml.safe_load(line) for line in re.findall(rf"`((?:{parts}): \{{.*?\}})`", text)]
    for each in found:
        families = (each.get("lesions") or {}).get("families", [])
        known = [name for name in families if isinstance(name, str) and name in FAMILIES]
        if families:
            each["lesions"]["families"] = known or ["medmix"]  # configured ones are for jsonargparse
        Recipe.of(each)


@pytest.mark.parametrize("path", NOW, ids=named)
def test_names_of_the_package_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.-])anomalib_msacl(?:\.\w+)+", text):
        assert name_exists(name), name


@pytest.mark.parametrize("path", NOW, ids=named)
def test_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/])(?:benchmarks|configs|docs|scripts|tests)/[\w/]+\.(?:py|yaml|md)", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_examples_in_python_compile_and_import_what_exists(path: Path) -> None:
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "anomalib_msacl":
                assert all(name_exists(f"{node.module}.{alias.name}") for alias in node.names), node.module


def test_the_arrows_of_the_architecture_are_the_imports() -> None:
    arrows = next(block for block in blocks(ROOT / "docs" / "architecture.md", "text") if "->" in block)
    told = {left.strip(): right.split() for left, _, right in (line.partition("->") for line in arrows.splitlines())}
    ground = {"errors", "paths", "compat", "distributed", "lazy"}
    assert set(told) == set(ORDER) - ground
    for name, others in told.items():
        files = [path for path in (PACKAGE / f"{name}.py", *(PACKAGE / name).rglob("*.py")) if path.exists()]
        found = {each for path in files for each in imported(path)}
        found |= {
            each for path in files for each in re.findall(r"^ *import anomalib_msacl\.(\w+)", path.read_text(), re.M)
        }
        found -= ground | {name}
        assert {other.strip(",") for other in others} == found, name


def run(block: str, **changes: str) -> None:
    """Run an example, some of its words exchanged for smaller ones."""
    for old, new in changes.items():
        assert old in block, old
        block = block.replace(old, new)
    exec(compile(block, "documentation", "exec", dont_inherit=True), {"__name__": __name__})


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = {
        "resnet18": "test_resnet",
        "pre_trained=False": "pre_trained=False, n_features=20",
        'weights="timm"': "weights='random', recipe={'max_steps': 1, 'batch_size': 4}",
        'Phantom("brain")': "Phantom('brain', image_size=64, train_images=12, test_images=8)",
        "Engine(": "Engine(accelerator='cpu', ",
    }
    (block,) = blocks(ROOT / "README.md", "python")
    run(block, **small)
    assert list(tmp_path.glob("results/msacl/test_resnet-*/model.safetensors"))


def test_the_examples_of_the_other_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "lesions.md", "python"):
        run(block)
    pushed, pretrained = blocks(ROOT / "docs" / "howto.md", "python")
    assert "push_backbone" in pushed  # needs a hub
    run(pretrained)
    assert (tmp_path / "backbone" / "model.safetensors").is_file()


def test_the_notebook_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, cell by cell, as Jupyter would: its execution proper belongs to the site's job."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "phantoms.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": __name__}
    for number, cell in enumerate(each for each in cells if each["cell_type"] == "code"):
        assert not cell["outputs"], "the notebook is kept without outputs"
        exec(compile("".join(cell["source"]), f"cell {number}", "exec", dont_inherit=True), names)
    assert names["after"].label.tolist() == names["before"].label.tolist()
    assert (tmp_path / "results" / "msacl").is_dir()


def test_the_reports_for_anomalib_still_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that fails has been mended upstream, or has changed: mend the page."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n((?:(?!```).)*)```\n\n```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 12
    for name in ("", "lightning.pytorch"):  # as in a process of its own; one report is of handlers
        logger = logging.getLogger(name or None)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logger.level)
    for block, expected in found:
        run(block)
        assert capsys.readouterr().out == expected, block


@pytest.mark.parametrize(("ending", "status", "requeued"), [("exit 3", 3, ""), ("", 0, ""), (None, 138, "requeue 7\n")])
def test_the_batch_file_ends_as_the_training_does_and_goes_back_into_the_queue(
    ending: str | None, status: int, requeued: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With programs of our own for srun and scontrol; without an ending the time of the job is up."""
    (script,) = (block for block in blocks(ROOT / "docs" / "devices.md", "bash") if "#SBATCH" in block)
    # More than once, for the first signal may come before the script waits.
    at_the_end = "while kill -USR1 $PPID; do sleep 0.5; done" if ending is None else ending
    told = tmp_path / "told"
    for name, text in (("srun", at_the_end), ("scontrol", f'echo "$@" > {told}')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert subprocess.run(["bash", "-c", script], check=False).returncode == status
    assert (told.read_text() if told.exists() else "") == requeued


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in site, page


def test_the_family_of_lesions_in_contributing_works() -> None:
    (block,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    assert len(block.splitlines()) <= 30
    before = dict(FAMILIES)
    try:
        run(block)
        images = smooth(4)
        output = LesionMixture(["hole"]).synthesize(images, torch.tensor([0, 1, 2, 3]), seeded())
    finally:
        FAMILIES.clear()
        FAMILIES.update(before)
    assert output.count.tolist() == [0, 1, 2, 3]
    inside = output.mask.expand_as(images) > 0
    assert inside.flatten(1).any(dim=1).tolist() == [False, True, True, True]
    assert output.image[inside].mean() < images[inside].mean()
    assert torch.equal(output.image[~inside], images[~inside])
