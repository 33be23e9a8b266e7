"""Hooks of mkdocs: links out of docs/ lead to the repository, and pages that are there join the navigation.

The pages are written for people who read them in the repository too, so they link to files beside docs/. On the site
such a link leads to the repository, or is plain text where no REPO_URL is known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")
# Docstrings name other objects as Sphinx does; of `:class:` and the like only the name is shown.
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code>)~?")
# Where a page goes that may not be there.
_OPTIONAL = {
    "screening.md": ("How to", "Screening"),
    "distributed.md": ("How to", "Many GPUs"),
    "igd.md": ("Explanation", "IGD"),
}


def on_config(config: Any) -> Any:
    """Enter pages that exist into the navigation."""
    for name, (section, title) in _OPTIONAL.items():
        if (Path(config.docs_dir) / name).exists():
            part = next(each[section] for each in config.nav if section in each)
            part.append({title: name})
    return config


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Point links to files beside docs/ to the repository."""
    place = f"{config.repo_url.rstrip('/')}/blob/main" if config.repo_url else ""
    return _OUTSIDE.sub(lambda found: f"[{found[1]}]({place}/{found[2]})" if place else found[1], markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show names of objects plainly."""
    return _ROLE.sub(r"\1", html)
