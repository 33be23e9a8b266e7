"""Say where the configurations are: ``python -m anomalib_msacl [NAME]``."""

from __future__ import annotations

import argparse
from pathlib import Path

_HERE = Path(__file__).parent


def config_path(name: str) -> Path:
    """Return the path of a configuration that comes with the package.

    Args:
        name: For example ``msacl_patchcore`` or ``msacl_patchcore.yaml``.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is none of that name.

    Example:
        >>> config_path("msacl_padim").name
        'msacl_padim.yaml'
    """
    for path in _configs():
        if name in {path.name, path.stem}:
            return path
    known = ", ".join(path.stem for path in _configs())
    raise FileNotFoundError(f"there is no configuration {name!r}; there are {known}")


def _configs() -> list[Path]:
    """Return all configurations: inside the installed package, or beside it in a checkout."""
    folders = (_HERE / "configs", _HERE.parent / "configs")
    return sorted(path for folder in folders for path in folder.glob("msacl_*.yaml"))


def main() -> None:
    """Print the path of one configuration, or of all."""
    parser = argparse.ArgumentParser(prog="python -m anomalib_msacl", description=__doc__)
    parser.add_argument("name", nargs="?", help="a configuration, e.g. msacl_patchcore; all of them if left out")
    name = parser.parse_args().name
    try:
        print(*([config_path(name)] if name else _configs()), sep="\n")
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
