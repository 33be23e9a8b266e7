"""Errors about what the user gave, and how a command line shows them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

_NAMED = 5  # names that a sentence has room for

# Messages that were raised inside of `one_line_errors`; None outside of it.
_raised: ContextVar[list[str] | None] = ContextVar("raised", default=None)

# What timm says, and what a person can do about it.
_UNKNOWN_MODEL = re.compile(r"Unknown model \(([^)]*)\)")
_UNKNOWN_BACKBONE = "unknown backbone {!r}: name an architecture that timm.list_models() knows, such as resnet18"

# What gloo and NCCL say where a process is gone, or too late.
_LOST_PROCESS = re.compile(
    r"gloo/transport|Connection closed by peer|Connection reset by peer|NCCL (?:communicator|Error|error)|"
    r"Timed out waiting|ProcessGroupNCCL"
)

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

    def __init__(self, message: str) -> None:
        """Keep the message in one line."""
        line = " ".join(message.splitlines())
        super().__init__(line)
        raised = _raised.get()
        if raised is not None:
            raised.append(line)


class LostProcessError(InputError):
    """Another process of a training on several devices is gone, or was not heard of for too long."""

    @classmethod
    def of(cls, error: BaseException) -> LostProcessError:
        """Return the sentence for an error of torch.distributed."""
        return cls(
            f"another process of this training ended, or did not answer in time ({first_line(error)[:200]}); its own "
            "message stands above, or in the log of its machine. Start the same command again: the pre-training goes "
            "on from its last checkpoint."
        )


@contextmanager
def one_line_errors(program: str = "anomalib-msacl") -> Iterator[None]:
    """Let a command line end in one sentence instead of a traceback where the input is at fault.

    Args:
        program: Name that the sentence begins with.

    Raises:
        SystemExit: With status 1, in place of an error of the input. Every other error passes.
    """
    raised: list[str] = []
    token = _raised.set(raised)
    try:
        yield
    except Exception as error:
        sentence = sentence_of(error, raised)
        if not sentence:
            raise
        sys.stderr.write(f"{program}: error: {sentence}\n")
        raise SystemExit(1) from error
    finally:
        _raised.reset(token)


def sentence_of(error: BaseException, raised: Sequence[str] = ()) -> str:
    """Return the sentence of the input error that an exception is or quotes; empty where there is none.

    When the constructor of a class named in YAML raises, jsonargparse raises an error of its own that quotes the
    message and is not linked to the first error. An unknown backbone is timm's error, and a hub out of reach that of
    the hub's client: both are told here, because they are the commonest slips of all.

    Args:
        error: Any exception.
        raised: Messages of the input errors that were raised before.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, TypeError | ValueError):
        quoted = [message for message in raised if message in str(error)]
        if quoted:
            return quoted[-1]
    if type(error).__name__ == "LocalEntryNotFoundError":  # of huggingface_hub, whose import takes its time
        return _UNREACHABLE
    if _is_of_lost_process(error):
        return str(LostProcessError.of(error))
    unknown = _UNKNOWN_MODEL.search(str(error)) if isinstance(error, RuntimeError | ValueError) else None
    return _UNKNOWN_BACKBONE.format(unknown.group(1)) if unknown else ""


def show_in_one_line(error: BaseException, program: str = "anomalib-msacl") -> None:
    """Print one line instead of a traceback if this very error ends the program.

    For errors that are raised while somebody else's command line runs, such as ``anomalib train``. The first uncaught
    exception, this one or another, puts the hook that was in force before back.

    Args:
        error: The error that is on its way; nothing is done where the input is not at fault.
        program: Name that the sentence begins with.
    """
    sentence = sentence_of(error)
    if not sentence:
        return
    previous = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        sys.excepthook = previous
        if value is error:
            sys.stderr.write(f"{program}: error: {sentence}\n")
        else:
            previous(kind, value, trace)

    sys.excepthook = show


def _is_of_lost_process(error: BaseException) -> bool:
    """Whether an error is that of a collective operation whose other side is gone; DDP raises it in the backward."""
    return isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error)) is not None


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error with its type, short enough to stand in a sentence.

    >>> first_line(KeyError("a"))
    "KeyError: 'a'"
    """
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0].split('. ')[0]}".rstrip(".")
