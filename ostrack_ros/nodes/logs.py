"""What the tracker's own modules log, passed on to the node's logger."""

from __future__ import annotations

import logging
from typing import Protocol

_SOURCE = "ostrack_ros"


class NodeLogger(Protocol):
    """The part of rclpy's logger used here."""

    def debug(self, message: str) -> object: ...

    def info(self, message: str) -> object: ...

    def warning(self, message: str) -> object: ...

    def error(self, message: str) -> object: ...


class _Forwarder(logging.Handler):
    def __init__(self, logger: NodeLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.levelno >= logging.ERROR:
                self._logger.error(message)
            elif record.levelno >= logging.WARNING:
                self._logger.warning(message)
            elif record.levelno >= logging.INFO:
                self._logger.info(message)
            else:
                self._logger.debug(message)
        except Exception:
            self.handleError(record)


def forward_logs(logger: NodeLogger) -> logging.Handler:
    """Send the package's records to `logger` from now on; the handler, to be removed again."""
    source = logging.getLogger(_SOURCE)
    handler = _Forwarder(logger)
    source.addHandler(handler)
    source.setLevel(min(source.level or logging.INFO, logging.INFO))
    source.propagate = False
    return handler


def stop_forwarding(handler: logging.Handler) -> None:
    source = logging.getLogger(_SOURCE)
    source.removeHandler(handler)
    source.propagate = not source.handlers
