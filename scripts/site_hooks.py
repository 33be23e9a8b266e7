"""Hooks of mkdocs: links out of docs/ lead to the repository.

The pages are written for people who read them in the repository too, so they link to files beside docs/. On the site
such a link leads to the repository, or is plain text where no REPO_URL is known.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")
# Docstrings name other objects as Sphinx does; of `:class:` and the like only the name is shown.
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code>)~?")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Point links to files beside docs/ to the repository."""
    place = f"{config.repo_url.rstrip('/')}/blob/main" if config.repo_url else ""
    return _OUTSIDE.sub(lambda found: f"[{found[1]}]({place}/{found[2]})" if place else found[1], markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show names of objects plainly, and keep a figure and its deviation on one line."""
    return _ROLE.sub(r"\1", html).replace(" ± ", "\u00a0±\u00a0")
