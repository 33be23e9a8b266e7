"""The command line of the package: ``anomalib-msacl``, or ``python -m anomalib_msacl``.

Nothing heavy is imported before it is needed: ``--help`` answers at once.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from jsonargparse import ArgumentParser

from anomalib_msacl.errors import InputError, one_line_errors
from anomalib_msacl.medical.kinds import training_folder
from anomalib_msacl.paths import at_home, with_home

_HERE = Path(__file__).parent
_LOUD = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric", "anomalib")  # loggers
_CONFIG = ("--config", "-c")
_ANOMALIB = ("train", "fit", "validate", "test", "predict", "export")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Those of the process if None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries among each other
        if given and given[0] in _ANOMALIB:
            _run_anomalib(given)
            return
        parsed = _parser().parse_args([_at_home(word) for word in given])
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
        paths = config_paths()
        width = max((len(path.stem) for path in paths), default=0)
        for path in paths:
            print(f"{path.stem:{width}}  {_purpose(path)}")
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


def _purpose(path: Path) -> str:
    """Return the first sentence of the comment that a configuration begins with."""
    first = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
    return first.partition(". ")[0].rstrip(".:")


def lesions(data: str, out: str = "lesions.png", size: int = 128, seed: int = 0, config: str | None = None) -> None:
    """Draw a contact sheet of synthetic lesions on images of your own, before anything is trained.

    Args:
        data: A folder of images.
        out: The picture to write.
        size: Side of the images in pixels.
        seed: Decides which lesions are drawn.
        config: A configuration whose recipe says which lesions are drawn; the default recipe if left out.
    """
    training_folder(Path(data))  # a wrong name is told before anything heavy is imported
    from anomalib_msacl.report.sheet import write_lesion_sheet  # noqa: PLC0415

    print(write_lesion_sheet(data, out, size, seed, config and _config_file(config)))


def screen(
    model: str,
    images: list[str],
    out: str = "screening",
    maps: Literal["all", "abnormal", "none"] = "abnormal",
    resume: bool = False,
    workers: int | None = None,
    model_class: str | None = None,
    dicom: bool = False,
) -> None:
    """Score images of any kind with an exported model or a checkpoint; writes OUT/scores.csv and heat maps.

    Args:
        model: A checkpoint (.ckpt), an exported model.xml, or the folder of an export.
        images: Files, and folders: PNG, JPEG, TIFF, DICOM of any name, NIfTI.
        out: Folder for scores.csv and maps.
        maps: Which images get a heat map.
        resume: Go on with a screening that was stopped.
        workers: Files at a time; as many as there are cores if left out.
        model_class: Class of a checkpoint's model, e.g. Patchcore, where its settings do not tell.
        dicom: Save the heat maps of DICOM files as DICOM objects that refer to them.
    """
    from anomalib_msacl.screening.command import print_result, run_screening  # noqa: PLC0415

    print_result(run_screening(model, images, out, maps, resume, workers, model_class, dicom))


def compare(
    data: str,
    models: str = "msacl_patchcore,msacl_padim",
    seeds: int = 3,
    out: str = "results/compare",
) -> None:
    """Compare detectors on the untouched and on the pre-trained backbone: did it help?

    Args:
        data: A set: train/good, test/good, test/lesion and, with masks, ground_truth/lesion.
        models: Configurations by name or file, with commas between them; their section data is not used.
        seeds: How often everything is done anew.
        out: Folder for the page, the scores and the weights; one that holds another comparison is refused.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; set it to 1 or more.")
    training_folder(Path(data))  # as in `lesions`
    with _quiet("anomalib_msacl.comparison"):
        _compare(data, models, seeds, Path(out))


def _compare(data: str, models: str, seeds: int, place: Path) -> None:
    """Compare, and write the page and the scores."""
    from anomalib_msacl import __version__  # noqa: PLC0415
    from anomalib_msacl.comparison import find_layout, run_trials, summary, write_scores  # noqa: PLC0415
    from anomalib_msacl.comparison.configured import Configured  # noqa: PLC0415

    configs = [Configured.read(_config_file(name)) for name in models.split(",")]
    layout = find_layout(data)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {place} ({error.strerror}); name another folder.") from error
    made = f"`anomalib-msacl compare {data} --models {models} --seeds {seeds}`"
    digest = hashlib.sha256("".join(config.digest for config in configs).encode()).hexdigest()[:12]
    _check_unused(place / "comparison.md", made, digest)
    told = _about_masks(layout.unmasked)
    print(told, file=sys.stderr, end="")
    trials, page = [], ""
    for trial in run_trials(layout, configs, range(seeds), place, lambda line: print(line, file=sys.stderr)):
        trials.append(trial)  # what is there is written at once: the next one may take hours, or fail
        page = summary(trials) + f"{told}\nMade by {made}, version {__version__}, configurations {digest}.\n"
        (place / "comparison.md").write_text(page, encoding="utf-8")
        if trial.untouched:
            write_scores(trials, place / "scores.csv")
    print(page, place / "comparison.md", sep="\n")


def _about_masks(folders: Sequence[str]) -> str:
    """Return a line that says why there is no table of pixels, empty where no folder lacks masks that others have."""
    if not folders:
        return ""
    return f"Pixels are not compared: there are no masks in ground_truth for {', '.join(folders)}.\n"


def _check_unused(page: Path, command: str, digest: str) -> None:
    """Raise :class:`InputError` where a page is that of another comparison: it took hours, perhaps.

    Args:
        page: The page, there or not.
        command: As the page names the command that made it.
        digest: Of the configurations, which may have been edited meanwhile.
    """
    if not page.is_file():
        return
    text = page.read_text(encoding="utf-8", errors="replace")
    if f"Made by {command}" not in text or f"configurations {digest}" not in text:
        what = "another command" if f"Made by {command}" not in text else "this command with other configurations"
        raise InputError(
            f"{page} is there already, and {what} made it; set --out to another folder, or move it and scores.csv away."
        )


def _config_file(name: str) -> Path:
    """Return a configuration: a file, or one that comes with the package."""
    path = at_home(name)
    return path if path.is_file() else config_path(name)


def _at_home(word: str) -> str:
    """Return a word of a command; shells leave ``~`` as it is in ``--out=~/x`` and in quotes."""
    option, equals, value = word.partition("=")
    return f"{option}={with_home(value)}" if option.startswith("--") and equals else str(with_home(word))


def report(run: str, out: str | None = None, before: bool = True) -> None:
    """Write a report of a run as one HTML file that needs no network.

    Args:
        run: The folder that anomalib train has left, e.g. results/Patchcore/my_images/latest.
        out: The file to write; report.html in that folder if left out.
        before: Fit the detector on the untouched backbone too, to show maps before and after.
    """
    from anomalib_msacl.report.config import config_of  # noqa: PLC0415

    config_of(run)  # before the imports, which take seconds
    with _quiet("anomalib_msacl.report.page"):
        from anomalib_msacl.report.page import write_report  # noqa: PLC0415

        print(write_report(run, out, before))


def demo(model: str | None = None, port: int = 7860, model_class: str | None = None) -> None:
    """Serve a page to this computer: drop an image, see score, threshold and map.

    Args:
        model: A checkpoint (.ckpt), an exported model.xml, or the folder of an export.
        port: Port of the page.
        model_class: Class of a checkpoint's model, e.g. Patchcore, where its settings do not tell.
    """
    with _quiet("anomalib_msacl.demo.page"):
        from anomalib_msacl.demo.page import show_page  # noqa: PLC0415

        show_page(model, port, model_class)


@contextmanager
def _quiet(module: str) -> Iterator[None]:
    """Let other libraries tell errors only: a command that runs them many times would drown what it says itself.

    Args:
        module: Of the command; imported here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(module)  # some libraries set their levels when they are imported
        loggers = [logging.getLogger(name) for name in _LOUD]
        levels = [each.level for each in loggers]
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


# Words of a command that take none, or several.
_WORDS: dict[str, dict[str, dict[str, str]]] = {
    "configs": {"name": {"nargs": "?", "help": "A configuration, e.g. msacl_patchcore; all of them if left out."}},
    "demo": {
        "model": {"nargs": "?", "help": "A checkpoint or an export; a small model fitted on phantoms if left out."}
    },
    "screen": {
        "model": {"help": "A checkpoint (.ckpt), an exported model.xml, or the folder of an export."},
        "images": {"nargs": "+", "help": "Files, and folders: PNG, JPEG, TIFF, DICOM of any name, NIfTI."},
        "--resume": {"action": "store_true", "help": "Go on with a screening that was stopped."},
        "--dicom": {"action": "store_true", "help": "Save heat maps of DICOM files as DICOM objects."},
    },
}
COMMANDS: dict[str, Callable[..., None]] = {
    "configs": configs,
    "lesions": lesions,
    "compare": compare,
    "report": report,
    "screen": screen,
    "demo": demo,
}


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
        words = _WORDS.get(name, {})
        for word, options in words.items():
            own.add_argument(word, **cast("Any", options))
        skipped: set[str | int] = {word.removeprefix("--") for word in words}
        own.add_function_arguments(command, as_group=False, as_positional=True, skip=skipped)
        cast("Any", commands).add_subcommand(name, own, help=(command.__doc__ or "").splitlines()[0])
    return parser


def _run_anomalib(arguments: list[str]) -> None:
    """Run anomalib's own command line as this package does."""
    from anomalib_msacl.anomalib_cli import run_anomalib  # noqa: PLC0415  # brings all models along

    run_anomalib(_with_paths(arguments))


def _with_paths(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which a configuration of the package is named by its path, where no file has that name."""
    known = {name: str(path) for path in config_paths() for name in (path.stem, path.name)}
    found = list(arguments)
    for index, word in enumerate(found):
        option, equals, name = word.partition("=")
        if option in _CONFIG and equals and at_home(name).exists():
            found[index] = f"{option}={with_home(name)}"
        elif option in _CONFIG and equals:
            found[index] = f"{option}={known.get(name, name)}"
        elif index and found[index - 1] in _CONFIG and not Path(word).exists():
            found[index] = known.get(word, word)
    return found
