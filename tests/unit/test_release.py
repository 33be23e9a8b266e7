"""What is built for a package index: absolute links, agreeing versions, and the checks before a commit."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import anomalib_msacl

ROOT = Path(__file__).parents[2]
PLACE = "https://example.org/owner/name"


@pytest.fixture(scope="module")
def script() -> Any:
    """The script, as a module."""
    path = ROOT / "scripts" / "prepare_release.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_link_of_the_readme_becomes_absolute(script: Any) -> None:
    before = text("README.md")
    after = script.absolute(before, PLACE, "v1.0.0")
    links = re.findall(r"\]\(([^)\s]+)\)", after)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert f"{PLACE}/raw/v1.0.0/docs/images/strip.png" in links
    assert f"{PLACE}/blob/v1.0.0/docs/howto.md#images-unlike-ours" in links
    own = [link for link in links if link.startswith(PLACE)]
    for link in own:
        assert (ROOT / link.split("/v1.0.0/")[1].split("#")[0]).exists(), link
    assert script.absolute(after, PLACE, "v1.0.0") == after  # what is absolute stays


def test_the_addresses_of_the_repository_are_added(script: Any) -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    urls = tomllib.loads(script.with_addresses(text("pyproject.toml"), PLACE, "v1.0.0"))["project"]["urls"]
    assert urls["Repository"] == PLACE
    assert {"Issues", "Changelog", "Paper"} <= set(urls)


def test_the_versions_agree(script: Any) -> None:
    version = re.search(r'^version = "(.*)"$', text("pyproject.toml"), re.MULTILINE)
    assert version is not None
    assert version[1] == anomalib_msacl.__version__
    newest = re.findall(r"^## \[(\d.*?)\] - ", text("CHANGELOG.md"), re.MULTILINE)[0]
    files = [text(name) for name in ("pyproject.toml", "anomalib_msacl/__init__.py", "CHANGELOG.md")]
    if newest == version[1]:
        script.check(f"v{newest}", *files)
    with pytest.raises(SystemExit, match="another version"):
        script.check("v99.0.0", *files)


def test_pre_commit_checks_what_make_checks() -> None:
    hooks = [
        hook["entry"] for repo in yaml.safe_load(text(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]
    ]
    made = text("Makefile").split("lint: ")[1].split("\n\n")[0]
    for hook in hooks:
        assert f"$(BIN)/{hook}" in made, hook
    assert made.count("$(BIN)/") == len(hooks)
    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path
