"""Logs: structlog to stderr, for people or as one JSON object a line."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO, cast

import structlog

_SECRET = ("password", "token", "secret", "private_key", "seed")


class _Stderr:
    """Whatever stderr is at the time of writing."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_STDERR = cast(TextIO, _Stderr())
_LIBRARIES = logging.StreamHandler(_STDERR)
_LIBRARIES.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def configure(log_format: str, level: str) -> None:
    """Set up the logs of this process. `log_format` is "console" or "json", `level` a standard level's name.

    Libraries, which log through the standard module, are heard from WARNING on.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    render: list[Any]
    # By default both forms print the local variables of every frame, and so passwords and keys.
    if log_format == "json":
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        render = [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_secrets,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(file=_STDERR),
    )
    root = logging.getLogger()
    if _LIBRARIES not in root.handlers:
        root.addHandler(_LIBRARIES)
    root.setLevel(max(threshold, logging.WARNING))


def _without_secrets(_: Any, __: str, event: Any) -> Any:
    """The last line of defence: a value under such a name is not written, whoever logged it."""
    for name in event:
        if any(word in name.lower() for word in _SECRET):
            event[name] = "…"
    return event
