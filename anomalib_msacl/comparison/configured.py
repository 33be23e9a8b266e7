"""Models, datamodules and callbacks out of configurations of anomalib, built without running anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback

from anomalib_msacl.callback import MsaclPretraining
from anomalib_msacl.errors import InputError, first_line
from anomalib_msacl.recipe import Recipe

# A picture for every test image is what anomalib writes by itself; here it would only cost time.
_QUIET = {"visualizer": False}
_TRAINING = {"accelerator", "precision", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"}
_TRAINING |= {"gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "limit_train_batches"}
_TRAINING |= {"check_val_every_n_epoch", "val_check_interval", "deterministic", "benchmark"}


@dataclass(frozen=True)
class Configured:
    """A configuration of anomalib, as ``anomalib train --config`` takes it.

    Attributes:
        content: The YAML, read.
        place: Where it comes from, for messages.
    """

    content: Mapping[str, Any]
    place: str

    @classmethod
    def read(cls, path: str | Path) -> Configured:
        """Read a file.

        Raises:
            InputError: If it cannot be read or names no model.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read as YAML ({first_line(error)}); name another file.") from error
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise InputError(f"{path} has no section model with a class_path; name a configuration of anomalib.")
        return cls(content, str(path))

    def model(self, **changes: Any) -> AnomalibModule:
        """Build the model, without pictures of its own.

        Args:
            **changes: Arguments of the model in place of those of the configuration.

        Raises:
            InputError: If it cannot be built.
        """
        import anomalib_msacl.detectors.msacl  # noqa: F401, PLC0415  # known by name from here on

        built: AnomalibModule = self._build("model", AnomalibModule, self.section("model"), {**_QUIET, **changes})
        return built

    def datamodule(self) -> AnomalibDataModule:
        """Build the datamodule; nothing is read yet.

        Raises:
            InputError: If there is none, or it cannot be built.
        """
        if not isinstance(self.content.get("data"), dict):
            raise InputError(f"{self.place} has no section data; name a configuration that has one.")
        built: AnomalibDataModule = self._build("data", AnomalibDataModule, self.section("data"), {})
        return built

    def callbacks(self) -> list[Callback]:
        """Build the callbacks of the trainer."""
        entries = (self.content.get("trainer") or {}).get("callbacks") or []
        entries = entries if isinstance(entries, list) else [entries]
        return [self._build("callback", Callback, entry, {}) for entry in entries]

    def pretraining(self) -> MsaclPretraining | None:
        """Return the callback that pre-trains; None where the configuration has none."""
        return next((each for each in self.callbacks() if isinstance(each, MsaclPretraining)), None)

    def recipe(self) -> Recipe:
        """Return the recipe of the callback that pre-trains, or of a model such as ``Msacl``.

        Raises:
            InputError: If there is none, or it is none.
        """
        callback = self.pretraining()
        if callback is not None:
            return callback.recipe
        model = self.section("model")
        if str(model.get("class_path")).rpartition(".")[2].lower() != "msacl":
            raise InputError(f"{self.place} has neither MsaclPretraining nor Msacl; name a configuration with one.")
        return Recipe.of((model.get("init_args") or {}).get("recipe"))

    def training(self) -> dict[str, Any]:
        """Return what the section ``trainer`` says of how a detector is fitted, without what concerns its output."""
        given = self.section("trainer").items()
        return {name: value for name, value in given if name in _TRAINING and value is not None}

    @property
    def digest(self) -> str:
        """What tells it from other models and trainings; comments and the other sections do not count."""
        content = [self.section("model"), self.section("trainer")]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of the configuration."""
        return dict(self.content.get(name) or {})

    def _build(self, name: str, kind: type, section: Any, changes: Mapping[str, Any]) -> Any:
        """Let jsonargparse build an object as the command line would."""
        section = {"class_path": section} if isinstance(section, str) else dict(section)
        if "class_path" not in section:  # the model's arguments may stand beside its name on a command line only
            raise InputError(f"{self.place}: the section {name} has no class_path; add one.")
        section["init_args"] = {**(section.get("init_args") or {}), **changes}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(kind, name, required=True)
        try:
            return parser.instantiate_classes(parser.parse_object({name: section}))[name]
        except ArgumentError as error:
            raise InputError(f"{self.place}: {name} cannot be built ({error}); mend it.") from error
