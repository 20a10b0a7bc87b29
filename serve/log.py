"""Structured logs: every record is one line of JSON on stderr, those of others too where the process is the service's.

A line has "time" (ISO 8601, UTC), "level", "logger", "message"; "request_id" while a request is being answered; what
the call gave as `extra`; and "trace" for an exception.
"""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any


request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered; None outside of one."""
LONGEST = 200
"""Characters of what a client named, a path or a method, that go into a line."""
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_access = logging.getLogger("serve.access")
_page = logging.getLogger("serve.ui")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: control characters and all that is not ASCII are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line; what JSON cannot say is written as its text."""
        line: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (id := request_id.get()) is not None:
            line["request_id"] = id
        line |= {key: value for key, value in vars(record).items() if key not in _OWN and key not in line}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        try:
            return json.dumps(line, default=str, allow_nan=False)
        except (ValueError, TypeError, RecursionError):  # NaN and infinity, keys that are no text, circles
            return json.dumps({key: value if isinstance(value, str) else str(value) for key, value in line.items()})


def configure(level: int = logging.INFO) -> None:
    """Send the records of "serve" and of all below it to stderr, in lines of JSON, and nowhere else."""
    logger = logging.getLogger("serve")
    logger.handlers = [_handler()]
    logger.propagate = False
    logger.setLevel(level)
    for name in [name for name in logging.root.manager.loggerDict if name == "serve" or name.startswith("serve.")]:
        logging.getLogger(name).disabled = False  # a dictConfig of others disables those that it does not name


def take_over() -> None:
    """Do so with the records of everybody else, from their own levels on, of the root from WARNING on."""
    logging.root.handlers = [_handler()]
    logging.root.setLevel(logging.WARNING)
    for name in ("bentoml", "uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.captureWarnings(True)  # else they go to stderr in words of their own


def print_exc() -> None:
    """Log the exception that is being handled, in place of traceback.print_exc."""
    _page.exception("the page failed")


def access(
    *,
    client: str | None,
    method: str,
    path: str,
    status: int,
    seconds: float,
    sent: int = 0,
    received: int = 0,
    code: str | None = None,
) -> None:
    """Log one answer; `sent` and `received` are bytes of bodies, `code` that of an error."""
    if not _access.isEnabledFor(logging.INFO):
        return
    fields = {
        "client": client,
        "method": method[:LONGEST],
        "path": path[:LONGEST],
        "status": status,
        "ms": round(seconds * 1e3, 3),
        "sent": sent,
        "received": received,
    }
    if code is not None:
        fields["code"] = code
    _access.info("answered", extra=fields)


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    return handler


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
