"""Where a run's configuration is; apart, so that a wrong folder is told before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from anomalib_msacl.errors import InputError


def config_of(folder: str | Path) -> Path:
    """Return the path of the ``config.yaml`` of a run, without links.

    Args:
        folder: What ``anomalib train`` has left, such as ``results/Patchcore/my_images/latest``.

    Raises:
        InputError: If there is none.
    """
    config = Path(folder).resolve() / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{folder} has no config.yaml; name the folder that anomalib train has left, such as "
            "results/Patchcore/my_images/latest. If that run had a logger, plain anomalib has put config.yaml into the "
            "logger's folder: copy it to this one."
        )
    return config
