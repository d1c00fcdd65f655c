"""Loggers: the caller's module by default, level from LOGLEVEL, on stderr where nobody else listens.

A program that configures logging keeps its own handlers and sees each record once: the handler set here speaks only
for records that no other handler takes.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import lru_cache

__all__ = ["get_logger"]


def get_logger(name: str | None = None) -> logging.Logger:
    """Returns the logger called `name`, ready to use.

    Args:
        name: a logger's name; without one (or with None or ""), the module of the caller.

    Its level is that of the environment variable LOGLEVEL, read at each call: a name in any case ("info") or a number
    ("15"); WARNING where it is unset. A value that is neither is WARNING too, and a RuntimeWarning says so once.
    """
    caller = sys._getframe(1)  # noqa: SLF001 - the documented way that does not read every caller's source
    logger = logging.getLogger(name or str(caller.f_globals.get("__name__", "shmstore")))
    logger.setLevel(_level(os.environ.get("LOGLEVEL", "")))
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    return logger


@lru_cache(maxsize=16)  # one warning a value
def _level(text: str) -> int:
    text = text.strip()
    if not text:
        return logging.WARNING
    if text.isdecimal():
        return int(text)
    level = logging.getLevelName(text.upper())
    if isinstance(level, int):
        return level
    warnings.warn(
        f"LOGLEVEL={text!r} is neither a level's name (DEBUG, INFO, WARNING, ...) nor a number: taken as WARNING",
        RuntimeWarning,
        stacklevel=3,
    )
    return logging.WARNING


class _StderrHandler(logging.Handler):
    """Writes to the stderr of the moment what no other handler on the way to the root takes."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self is not _speaker(record.name):
            return
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def _speaker(name: str) -> logging.Handler | None:
    """The one handler of ours that is to speak for this logger: None when another's handler hears it."""
    found: logging.Handler | None = None
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        for handler in logger.handlers:
            if not isinstance(handler, _StderrHandler):
                return None
            found = handler
        logger = logger.parent if logger.propagate else None
    return found
