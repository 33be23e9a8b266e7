"""The command line of the package: ``anomalib-msacl``, or ``python -m anomalib_msacl``.

Nothing heavy is imported before it is needed: ``--help`` answers at once.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser

from anomalib_msacl.errors import InputError, one_line_errors

_HERE = Path(__file__).parent
_ANOMALIB = ("train", "fit", "validate", "test", "predict", "export")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Those of the process if None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        if given and given[0] in _ANOMALIB:
            _run_anomalib(given)
            return
        parsed = _parser().parse_args(given)
        name = parsed.subcommand
        COMMANDS[name](**vars(parsed[name]))


def config_path(name: str) -> Path:
    """Return the path of a configuration that comes with the package.

    Args:
        name: For example ``msacl_patchcore`` or ``msacl_patchcore.yaml``.

    Returns:
        The file.

    Raises:
        InputError: If there is none of that name.

    Example:
        >>> config_path("msacl_padim").name
        'msacl_padim.yaml'
    """
    found = config_paths()
    for path in found:
        if name in {path.name, path.stem}:
            return path
    known = ", ".join(path.stem for path in found)
    raise InputError(f"there is no configuration {name!r}; there are {known}.")


def config_paths() -> list[Path]:
    """Return all configurations: inside the installed package, or beside it in a checkout."""
    folders = (_HERE / "configs", _HERE.parent / "configs")
    return sorted(path for folder in folders for path in folder.glob("msacl_*.yaml"))


def configs(name: str | None = None, copy: str | None = None) -> None:
    """List the configurations that come with the package, or print the path of one.

    Args:
        name: A configuration, e.g. msacl_patchcore; all of them if left out.
        copy: Copy it to this new file, to be changed there.
    """
    if not name:
        if copy:
            raise InputError("--copy needs the name of a configuration before it.")
        print(*config_paths(), sep="\n")
        return
    path = config_path(name)
    if copy:
        target = Path(copy)
        if target.exists():
            raise InputError(f"{target} is there already; name a new file.")
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            raise InputError(f"cannot write {target} ({error.strerror}); name another file.") from error
        path = target
    print(path)


def lesions(data: str, out: str = "lesions.png", size: int = 128, seed: int = 0) -> None:
    """Draw a contact sheet of synthetic lesions on images of your own, before anything is trained.

    Args:
        data: A folder of images.
        out: The picture to write.
        size: Side of the images in pixels.
        seed: Decides which images and lesions are drawn.
    """
    from anomalib_msacl.report.lesion_sheet import write_lesion_sheet  # noqa: PLC0415

    print(write_lesion_sheet(data, out, size, seed))


# Words of a command that may be left out.
_OPTIONAL = {"configs": {"name": "A configuration, e.g. msacl_patchcore; all of them if left out."}}
COMMANDS: dict[str, Callable[..., None]] = {"configs": configs, "lesions": lesions}


def _parser() -> ArgumentParser:
    """Return the parser of the commands that are ours."""
    also = ", ".join(_ANOMALIB)
    parser = ArgumentParser(
        prog="anomalib-msacl",
        description=f"MSACL pre-training, a plug-in of anomalib. {also}: as anomalib's own, errors in one sentence, "
        "and export keeps the antialiasing of the tested model.",
    )
    commands = parser.add_subcommands(required=True)
    for name, command in COMMANDS.items():
        own = ArgumentParser(description=(command.__doc__ or "").splitlines()[0])
        optional = _OPTIONAL.get(name, {})
        for word, description in optional.items():
            own.add_argument(word, nargs="?", help=description)
        own.add_function_arguments(command, as_group=False, as_positional=True, skip=set(optional))
        cast("Any", commands).add_subcommand(name, own, help=(command.__doc__ or "").splitlines()[0])
    return parser


def _run_anomalib(arguments: list[str]) -> None:
    """Run anomalib's own command line as this package does."""
    from anomalib_msacl.anomalib_cli import run_anomalib  # noqa: PLC0415  # brings all models along

    run_anomalib(arguments)
