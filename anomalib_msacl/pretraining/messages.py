"""Each message of this package once, whatever handlers there are.

``anomalib`` gives the root logger two that write to the console, a plain one and one of rich; and of several processes
each would tell what all of them do.
"""

from __future__ import annotations

import logging

from rich.logging import RichHandler

from anomalib_msacl import distributed

_PACKAGE = __name__.partition(".")[0]


class Once(logging.Filter):
    """Lets records of this package pass through one handler of the console only, and infos in one process only.

    Args:
        passes: Whether the handler is that one.
    """

    def __init__(self, passes: bool) -> None:
        super().__init__()
        self.passes = passes

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.name.partition(".")[0] != _PACKAGE:
            return True
        return self.passes and (record.levelno > logging.INFO or distributed.is_main())


def each_message_once() -> None:
    """Put the filter on the root logger's handlers, those of files and tests left out; again and again does no harm."""
    handlers = [handler for handler in logging.getLogger().handlers if _writes_to_console(handler)]
    rich = [handler for handler in handlers if isinstance(handler, RichHandler)]
    for handler in handlers:
        for old in [each for each in handler.filters if isinstance(each, Once)]:
            handler.removeFilter(old)
        handler.addFilter(Once(passes=handler is (rich or handlers)[0]))


def _writes_to_console(handler: logging.Handler) -> bool:
    return isinstance(handler, RichHandler) or type(handler) is logging.StreamHandler
