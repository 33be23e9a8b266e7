"""Errors about what the user gave, and how they are shown on the command line."""

import re
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar

from huggingface_hub.errors import LocalEntryNotFoundError

ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]

_NAMED = 5  # names that a sentence has room for

# What timm says, and what a person can do about it.
_UNKNOWN_MODEL = re.compile(r"Unknown model \(([^)]*)\)")
_UNKNOWN_BACKBONE = "unknown backbone {!r}: name an architecture that timm.list_models() knows, such as resnet18"

# What the hub's client says when a model is built with weights from the hub and the hub is out of reach.
_UNREACHABLE = (
    "the model hub is out of reach and its cache holds no such weights: build the model with pre_trained: false, and "
    "give the callback MsaclPretraining weights: offline, torchvision or a folder"
)


class InputError(ValueError):
    """A bad value, file or folder given by the user.

    Args:
        message: One sentence that names the value, the place where it was found, and the remedy. Line breaks become
            blanks.
    """

    _latest_message: ClassVar[str] = "\0"  # no message contains it

    def __init__(self, message: str) -> None:
        """Keep the message, and remember it as the latest."""
        line = " ".join(message.splitlines())
        super().__init__(line)
        InputError._latest_message = line

    @classmethod
    def message_behind(cls, error: BaseException) -> str:
        """Give the message of the input error that an exception is or quotes, empty where there is none.

        When the constructor of a class named in YAML raises, jsonargparse may raise a ``ValueError`` of its own that
        quotes the message among others and is not linked to the first error. An unknown backbone is timm's error and a
        hub out of reach that of the hub's client, raised while anomalib builds its own model, before any code of this
        package runs; they are told here because they are the commonest slips of all.

        Args:
            error: Any exception.
        """
        if isinstance(error, cls):
            return str(error)
        if isinstance(error, TypeError | ValueError) and cls._latest_message in str(error):
            return cls._latest_message
        if isinstance(error, LocalEntryNotFoundError):
            return _UNREACHABLE
        unknown = _UNKNOWN_MODEL.search(str(error)) if isinstance(error, RuntimeError | ValueError) else None
        return _UNKNOWN_BACKBONE.format(unknown.group(1)) if unknown else ""


class _OneLineHook:
    """Exception hook that prints an :class:`InputError` as one line and hands on every other exception.

    Args:
        previous: The hook that shows all other exceptions.
    """

    def __init__(self, previous: ExceptHook) -> None:
        self.previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Show an uncaught exception on stderr; the arguments are those of ``sys.excepthook``."""
        message = InputError.message_behind(error)
        if message:
            sys.stderr.write(f"anomalib-msacl: error: {message}\n")
        else:
            self.previous(kind, error, trace)


def show_input_errors_as_one_line() -> None:
    """Let an uncaught :class:`InputError` print one line instead of a traceback.

    Wraps the hook that is in force now, so that it also works after anomalib's command line has put its own one
    there. A second call changes nothing, unless the hook was replaced in between: then it is wrapped again. The
    exit status stays Python's own, 1.
    """
    if not isinstance(sys.excepthook, _OneLineHook):
        sys.excepthook = _OneLineHook(sys.excepthook)


def name_some(names: Sequence[str], separator: str = ", ") -> str:
    """Join names for a sentence, the first few in full.

    >>> name_some(["a", "b"])
    'a, b'
    >>> name_some(list("abcdefg"))
    'a, b, c, d, e and 2 more'
    """
    listed = separator.join(names[:_NAMED])
    hidden = len(names) - _NAMED
    return f"{listed} and {hidden} more" if hidden > 0 else listed
