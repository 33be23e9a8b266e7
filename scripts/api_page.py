"""Write docs/api.md and the pages of docs/api/: every public name, under the package that it is imported from.

python scripts/api_page.py
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
_FIRST = "Written by `scripts/api_page.py` from the public names; the text is that of the docstrings."

FIRST = ["MsaclPretraining", "Recipe", "Msacl", "NormalsThreshold"]  # described before the others

# Title and packages of each page.
PAGES = {
    "start": ("What most users need", ("anomalib_msacl",)),
    "recipe": ("Settings", ("anomalib_msacl.recipe",)),
    "data": ("Images", ("anomalib_msacl.data", "anomalib_msacl.medical", "anomalib_msacl.phantom")),
    "lesions": ("Synthetic lesions", ("anomalib_msacl.lesions",)),
    "results": (
        "Thresholds, figures and pictures",
        (
            "anomalib_msacl.thresholds",
            "anomalib_msacl.metrics",
            "anomalib_msacl.comparison",
            "anomalib_msacl.report",
            "anomalib_msacl.scores",
        ),
    ),
    "backbone": (
        "Backbones and weights",
        ("anomalib_msacl.backbone", "anomalib_msacl.transfer", "anomalib_msacl.export"),
    ),
    "method": ("The method", ("anomalib_msacl.pretraining", "anomalib_msacl.detectors.msacl")),
}
PACKAGES = {
    "anomalib_msacl": "Import these names from `anomalib_msacl`.",
    "anomalib_msacl.recipe": "[The table of all settings](../recipe.md) has their defaults.",
    "anomalib_msacl.data": "Datamodules, and validation without abnormal images.",
    "anomalib_msacl.lesions": "Families of synthetic lesions; [what they imitate](../lesions.md).",
    "anomalib_msacl.thresholds": "Thresholds from normal images alone; [what is promised](../thresholds.md).",
    "anomalib_msacl.metrics": "The figures that medicine reports.",
    "anomalib_msacl.comparison": "Did it help?",
    "anomalib_msacl.report": "Pictures and the report of a run.",
    "anomalib_msacl.backbone": "Backbones and their weights.",
    "anomalib_msacl.pretraining": "[The method](../method.md), step by step.",
    "anomalib_msacl.transfer": "How weights reach a detector.",
    "anomalib_msacl.export": "Exports that score as the tested model.",
    "anomalib_msacl.medical": "DICOM, NIfTI and 16 bits.",
    "anomalib_msacl.phantom": "Rendered images.",
    "anomalib_msacl.scores": "Scores as a table.",
    "anomalib_msacl.detectors.msacl": "`Msacl` and its network.",
}


def public(package: str) -> list[str]:
    """Return the public names of a package: those it lists, or what a module defines without an underscore."""
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name.lower()))
    return [
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == package
        and not name.startswith("_")
    ]


def home(package: str, name: str) -> str:
    """Return where a public name is defined, which is where its documentation stands."""
    value: Any = getattr(importlib.import_module(package), name)
    module = getattr(value, "__module__", None)
    if not (inspect.isclass(value) or inspect.isfunction(value)) or not str(module).startswith("anomalib_msacl"):
        return ""
    return f"{module}.{value.__qualname__}"


def pages() -> dict[str, str]:
    """Return the text of every page by its path below docs/. A name that several packages lend is described once."""
    seen: dict[str, str] = {}
    texts = {
        f"api/{page}.md": "\n".join(_page(title, packages, seen)) + "\n" for page, (title, packages) in PAGES.items()
    }
    return {"api.md": "\n".join(_overview()) + "\n", **texts}


def _overview() -> Iterator[str]:
    """Yield the lines of the page that leads to the others."""
    yield from ("# Python", "", _FIRST, "", "| page | import from | names |", "|---|---|---|")
    for page, (title, packages) in PAGES.items():
        for package in packages:
            names = ", ".join(f"`{name}`" for name in public(package))
            link = f"[{title}](api/{page}.md)" if package == packages[0] else ""
            yield f"| {link} | `{package}` | {names} |"


def _page(title: str, packages: tuple[str, ...], seen: dict[str, str]) -> Iterator[str]:
    """Yield the lines of a page."""
    yield from (f"# {title}", "", _FIRST)
    for package in packages:
        yield from ("", f"## {package}", "", PACKAGES[package])
        for name in public(package):
            place = home(package, name)
            if not place:
                yield from ("", f"`{name}`: a constant.")
            elif place in seen:
                yield from ("", f"`{name}`: described under `{seen[place]}`.")
            else:
                seen[place] = package
                yield from ("", f"::: {place}")


if __name__ == "__main__":
    (DOCS / "api").mkdir(exist_ok=True)
    for _path, _text in pages().items():
        (DOCS / _path).write_text(_text, encoding="utf-8")
