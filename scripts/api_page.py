"""Print docs/api.md: every public name, under the package that it is imported from.

python scripts/api_page.py > docs/api.md
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

PACKAGES = {
    "anomalib_msacl": "What most users need. Import these names from `anomalib_msacl`.",
    "anomalib_msacl.recipe": "Settings; [the table of all of them](recipe.md).",
    "anomalib_msacl.data": "Datamodules, and validation without abnormal images.",
    "anomalib_msacl.lesions": "Families of synthetic lesions; [what they imitate](lesions.md).",
    "anomalib_msacl.thresholds": "Thresholds from normal images alone; [what is promised](thresholds.md).",
    "anomalib_msacl.metrics": "The figures that medicine reports.",
    "anomalib_msacl.comparison": "Did it help?",
    "anomalib_msacl.report": "Pictures and the report of a run.",
    "anomalib_msacl.backbone": "Backbones and their weights.",
    "anomalib_msacl.pretraining": "The method, step by step.",
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
        return sorted(listed, key=str.lower)
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


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    """Yield the lines of the page. A name that several packages lend is described once."""
    yield "# Python"
    yield ""
    yield "Written by `scripts/api_page.py` from the public names; the text is that of the docstrings."
    seen: dict[str, str] = {}
    for package, words in PACKAGES.items():
        yield from ("", f"## {package}", "", words)
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
    print(page(), end="")
