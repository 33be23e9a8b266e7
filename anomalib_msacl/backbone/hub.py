"""Folders of weights on a model hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from anomalib_msacl.backbone.folder import FILES, read_config
from anomalib_msacl.backbone.tensors import read_file
from anomalib_msacl.errors import InputError, first_line

HUB = "hf-hub:"


def split_revision(repository: str) -> tuple[str, str | None]:
    """Return the name of a repository and its revision, a branch, tag or commit.

    Raises:
        InputError: If it is not of the form ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.

    Example:
        >>> split_revision("owner/name@v1"), split_revision("owner/name")
        (('owner/name', 'v1'), ('owner/name', None))
    """
    name, _, revision = repository.partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(f"'{HUB}{repository}' is no repository; name it {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION.")
    return name, revision or None


def download(repository: str) -> Path:
    """Return the local copy of a repository, downloaded where the cache does not hold it.

    Args:
        repository: ``OWNER/NAME``, or ``OWNER/NAME@REVISION`` to be sure of what comes.

    Raises:
        InputError: If it cannot be had.
    """
    name, revision = split_revision(repository)
    try:  # nothing but these files: no code and no pickles
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise InputError(
            f"cannot get {repository!r} from the hub ({first_line(error)}); name an existing repository as "
            f"{HUB}OWNER/NAME, or a folder."
        ) from error


def push_backbone(directory: str | Path, repository: str, private: bool = True) -> str:
    """Upload a folder of weights to a repository of the hub, which is made if it does not exist.

    The token is the one that ``hf auth login`` has stored, or ``HF_TOKEN``. Nothing but model card, configuration
    and tensors is uploaded.

    Args:
        directory: A folder of :func:`anomalib_msacl.backbone.save_backbone`.
        repository: ``OWNER/NAME``.
        private: Whether a new repository is to be private. Weights of patients' images may tell of the patients.

    Returns:
        What to name as ``weights`` or ``backbone``: ``hf-hub:OWNER/NAME``.

    Raises:
        InputError: If it is no folder of weights, or the hub refuses.
    """
    directory = Path(directory)
    read_config(directory)
    read_file(directory / "model.safetensors")
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=directory,
            allow_patterns=list(FILES),
            commit_message="Backbone pre-trained by MSACL",
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise InputError(
            f"cannot push {directory} to {repository!r} ({first_line(error)}); name it OWNER/NAME and log in with "
            "`hf auth login`."
        ) from error
    return f"{HUB}{repository}"
