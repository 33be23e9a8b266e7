"""The report of a run: one HTML file without network, for light and dark screens and for paper."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import jinja2

from anomalib_msacl.errors import InputError
from anomalib_msacl.report.findings import Findings, gather
from anomalib_msacl.report.sections import (
    Section,
    choice,
    curve_section,
    features,
    images,
    lesions,
    reproduction,
    results,
    trained,
)


def write_report(run: str | Path, out: str | Path | None = None, before: bool = True) -> Path:
    """Write the report of a run.

    Args:
        run: Folder that ``anomalib train`` has left.
        out: File to write; ``report.html`` in the folder if None.
        before: Fit the detector on the untouched backbone too, for maps before and after; takes as long as the run
            without its pre-training.

    Returns:
        The file.

    Raises:
        InputError: If the folder is not that of a run, or the file cannot be written.
    """
    path = Path(out) if out else Path(run) / "report.html"
    if path.is_dir() or (out and not path.parent.is_dir()):  # told before the work, not after it
        raise InputError(f"cannot write {path}; name a file in a folder that exists.")
    text = render(gather(run, before))
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); name a file in a folder that exists.") from error
    return path


def render(found: Findings) -> str:
    """Return the page.

    Args:
        found: What it shows.
    """
    parts = (trained, curve_section, choice, lesions, features, results, images, reproduction)
    sections: list[Section] = [part(found) for part in parts]
    template = resources.files("anomalib_msacl.report").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    name = found.facts.data if found.facts else str(found.run.config.section("data").get("class_path", ""))
    return environment.from_string(template).render(
        title=f"{found.run.model_name} on {name}",
        subtitle="A report of one run. It is no medical device, and neither are its figures.",
        verdict=found.facts.verdict if found.facts else "",
        sections=sections,
    )
