"""Print docs/recipe.md: every setting of the recipe, out of the dataclasses and their docstrings.

python scripts/recipe_table.py > docs/recipe.md
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any, get_type_hints

from anomalib_msacl.recipe import RENAMED, Recipe

_INTRODUCTION = """\
# The recipe

Every setting of the pre-training. This page is printed by `python scripts/recipe_table.py > docs/recipe.md`; a test
compares the two.

In YAML, `recipe` is an argument of `anomalib_msacl.MsaclPretraining` and of `anomalib_msacl.Msacl`:

```yaml
recipe:
  max_steps: 20
  loss: { dense: 0.5 }
  lesions: { families: [medmix, blob] }
```

On the command line: `--trainer.callbacks.init_args.recipe.loss.dense 0.5`. In Python:
`Recipe(max_steps=20, loss=LossRecipe(dense=0.5))`, with the classes of `anomalib_msacl.recipe`.
"""
_HEAD = "| name | default | meaning |\n|---|---|---|"
_NO_LIMIT = 1e9


def page() -> str:
    """Return the page."""
    hints = get_type_hints(Recipe)
    parts = [name for name, kind in hints.items() if dataclasses.is_dataclass(kind)]
    sections = [_INTRODUCTION, "## recipe", _HEAD + "\n" + _rows(Recipe, parts)]
    for name in parts:
        place, kind = f"recipe.{name}", hints[name]
        sections += [f"## {place}", _introduction(kind), _HEAD + "\n" + _rows(kind)]
    renamed = "\n".join(_renamed(old, new) for old, new in sorted(RENAMED.items()))
    sections += [
        "## Names of version 0.2.0.dev0",
        "The recipe of 0.2.0.dev0 was flat. An old name is refused with the new one. `view` has kept its name.\n"
        "Of the arguments that `medmix` took, `keep_on_foreground` and `foreground_threshold` are settings of "
        "`lesions` now.",
        "| old | new |\n|---|---|\n" + renamed,
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _rows(kind: type, left_out: list[str] | tuple[str, ...] = ()) -> str:
    """Return the rows of the settings of a dataclass."""
    meanings = _meanings(kind)
    return "\n".join(
        f"| `{each.name}` | `{_default(each)}` ({_kind(each)}) | {meanings[each.name]} |"
        for each in dataclasses.fields(kind)
        if each.name not in left_out
    )


def _kind(each: dataclasses.Field[Any]) -> str:
    """Return the type of a setting with its limits."""
    name = {"Positives": "class or image", "OptimizerName": "adamw or sgd"}.get(str(each.type))
    name = name or str(each.type).replace(" | ", " or ")
    if "range" not in each.metadata:
        return name
    lowest, highest = each.metadata["range"]
    above = "above 0" if 0 < lowest < 1 else f"from {lowest:g}"
    below = f" to {highest:g}" if highest < _NO_LIMIT else ""
    return f"{name}, {above}{below}"


def _default(each: dataclasses.Field[Any]) -> str:
    """Return the default of a setting as YAML has it."""
    factory = each.default_factory
    value = each.default if factory is dataclasses.MISSING else factory()
    words = {True: "true", False: "false", None: "null"}
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return words.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def _introduction(kind: type) -> str:
    """Return what a docstring says before its attributes."""
    return _markdown(inspect.cleandoc(kind.__doc__ or "").split("Attributes:", maxsplit=1)[0])


def _meanings(kind: type) -> dict[str, str]:
    """Return what a docstring says of each attribute."""
    block = inspect.cleandoc(kind.__doc__ or "").split("Attributes:\n")[1].split("\n\n", maxsplit=1)[0]
    entries = re.split(r"\n(?=\S)", textwrap.dedent(block))
    named = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: _markdown(text) for name, _, text in named}


def _markdown(text: str) -> str:
    """Return reStructuredText of the docstrings as Markdown that fits into a table."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", r"\|")


def _renamed(old: str, new: str) -> str:
    """Return the row of an old name."""
    name, _, remark = new.partition(" ")
    return f"| `{old}` | `{name}` {remark}".rstrip() + " |"


if __name__ == "__main__":
    print(page(), end="")
