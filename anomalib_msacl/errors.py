"""Errors about what the user gave, and how a command line shows them."""

from __future__ import annotations

import errno
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

_NAMED = 5  # names that a sentence has room for
_WORD = re.compile(r"(\S{120})\S{40,}(\S{120})")  # a path or a name that nobody would read to its end

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

# What torch says of a file that holds more than tensors and plain data.
_UNSAFE = (
    "a checkpoint holds more than tensors and plain data, which may be code and is not read; name one that anomalib "
    "has written"
)

# What anomalib says of paths that its datamodules and `predict` cannot read, and what a person can do about it.
_PATHS = {
    r"Path (?:contains non-printable characters|is too long): (.*)": (
        "anomalib reads paths of up to 512 plain ASCII characters only, and not {}: rename it, or take what reads any "
        "path, the datamodule anomalib_msacl.data.MedicalFolder or the command anomalib-msacl screen"
    ),
    r"Path does not exist: (.*)": "{} is missing: name a file or folder that exists",
    r"Found 0 images in (.*)": (
        "{} has no images that anomalib reads, such as PNG and JPEG: name a folder of some, or take the command "
        "anomalib-msacl screen, which reads DICOM and NIfTI, too"
    ),
}

# Of a folder, or a disk.
_NOT_WRITABLE = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS}

# What the hub's client says when a model is built with weights from the hub and the hub is out of reach.
_UNREACHABLE = (
    "the model hub is out of reach and its cache holds no such weights: build the model with pre_trained: false, and "
    "give the callback MsaclPretraining weights: offline, torchvision or a folder"
)


class InputError(ValueError):
    """A bad value, file or folder given by the user.

    Args:
        message: One sentence that names the value, the place where it was found, and the remedy. Line breaks become
            blanks, and the middle of a very long name becomes dots.
    """

    def __init__(self, message: str) -> None:
        """Keep the message in one line."""
        line = _WORD.sub(r"\1...\2", " ".join(message.splitlines()))
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
    return next((say(error) for kind, said, say in _OF_OTHERS if isinstance(error, kind) and said(error)), "")


def _quotes(words: str) -> Callable[[BaseException], bool]:
    """Return whether the message of an error has some words, a regular expression."""
    return lambda error: re.search(words, str(error)) is not None


def _unknown_backbone(error: BaseException) -> str:
    """Return the sentence for a model that timm does not know."""
    found = _UNKNOWN_MODEL.search(str(error))
    return _UNKNOWN_BACKBONE.format(found.group(1) if found else "")


def _refused_path(error: BaseException) -> str:
    """Return the sentence for a path that anomalib cannot read."""
    found = ((re.search(said, str(error), re.DOTALL), sentence) for said, sentence in _PATHS.items())
    return next(str(InputError(sentence.format(match.group(1)))) for match, sentence in found if match)


def _not_writable(error: BaseException) -> str:
    """Return the sentence for a file that cannot be written."""
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)  # the second is where it goes to
    file = named or "a file of this run, in its results or its temporary folder"
    return f"{file}: {getattr(error, 'strerror', error)}; free some space, or name a folder that can be written"


def _below_a_file(error: BaseException) -> str:
    """Return the sentence for a path that goes through a file as if it were a folder."""
    return f"{getattr(error, 'filename', None)}: a part of this path is a file and no folder; name another folder"


# Errors of other libraries: their kind, how they are told, and what is said.
_OF_OTHERS: tuple[tuple[Any, Callable[[Any], bool], Callable[[BaseException], str]], ...] = (
    # of huggingface_hub, whose import takes its time; jsonargparse quotes it
    (Exception, lambda error: type(error).__name__ == "LocalEntryNotFoundError", lambda _: _UNREACHABLE),
    ((TypeError, ValueError), _quotes("trying to locate the file on the Hub"), lambda _: _UNREACHABLE),
    ((FileNotFoundError, ValueError), _quotes("|".join(_PATHS)), _refused_path),
    (OSError, lambda error: error.errno in _NOT_WRITABLE, _not_writable),
    (NotADirectoryError, lambda error: bool(error.filename), _below_a_file),
    (
        RuntimeError,
        _quotes("PytorchStreamWriter"),
        lambda error: f"a checkpoint could not be written ({first_line(error)[:200]}); free some space and start again",
    ),
    (pickle.UnpicklingError, _quotes("Weights only load failed"), lambda _: _UNSAFE),
    (RuntimeError, _quotes(_LOST_PROCESS.pattern), lambda error: str(LostProcessError.of(error))),
    # Lightning, where the tasks of a job do not fit the trainer's devices and nodes
    ((RuntimeError, ValueError), _quotes(r"^You set .* SLURM"), lambda error: str(error).splitlines()[0]),
    ((RuntimeError, ValueError), _quotes(_UNKNOWN_MODEL.pattern), _unknown_backbone),
)


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
