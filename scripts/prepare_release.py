"""Put the repository's address into what a package index shows, and check that tag, version and changelog agree.

    python scripts/prepare_release.py v0.2.0 https://HOST/OWNER/NAME

A package index shows README.md without the files beside it: links and pictures become absolute, at the tag. The
addresses of the repository are added to the project's. For the copy that is built only; the changes are not to be
committed.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, tag: str) -> str:
    """Return Markdown whose relative links and pictures are absolute."""

    def replaced(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({repository}/{kind}/{tag}/{found[3]})"

    return _LINK.sub(replaced, text)


def with_addresses(pyproject: str, repository: str, tag: str) -> str:
    """Return pyproject.toml with the addresses of the repository."""
    lines = [f'Repository = "{repository}"', f'Issues = "{repository}/issues"']
    lines.append(f'Changelog = "{repository}/blob/{tag}/CHANGELOG.md"')
    return pyproject.replace("[project.urls]\n", "\n".join(["[project.urls]", *lines, ""]), 1)


def check(tag: str, pyproject: str, package: str, changelog: str) -> None:
    """Refuse a tag that is not the version of the package with an entry in the changelog."""
    version = tag.removeprefix("v")
    if f'\nversion = "{version}"\n' not in pyproject or f'\n__version__ = "{version}"\n' not in package:
        raise SystemExit(f"the tag is {tag}, but pyproject.toml or anomalib_msacl.__version__ has another version.")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        raise SystemExit(f"CHANGELOG.md has no dated entry of {version}.")


def main() -> None:
    """Prepare the working copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag")
    parser.add_argument("repository")
    arguments = parser.parse_args()
    names = ("pyproject.toml", "anomalib_msacl/__init__.py", "CHANGELOG.md", "README.md")
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    check(arguments.tag, *(texts[name] for name in names[:3]))
    repository = arguments.repository.rstrip("/")
    (ROOT / "README.md").write_text(absolute(texts["README.md"], repository, arguments.tag), encoding="utf-8")
    changed = with_addresses(texts["pyproject.toml"], repository, arguments.tag)
    (ROOT / "pyproject.toml").write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
