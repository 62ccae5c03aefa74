"""Log output: one JSON object a line for machines, or one readable line for people.

Messages are constant texts; what differs from case to case is in the fields given as `extra`.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Literal, TextIO

Format = Literal["json", "text"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What a log call gave as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Readable(logging.Formatter):
    """Time, level, message, fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows on lines of its own."""
        fields = " ".join(f"{key}={_plain(value)}" for key, value in fields_of(record).items())
        line = f"{_time(record)} {record.levelname:<8} {record.getMessage()}  {fields}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "\n=') else text


def _is_trouble(record: logging.LogRecord) -> bool:
    """Whether a line of watchdog is about anything that is wrong. It says as an error that a change came just while a
    watch was taken back: by whoever did that, for nobody waits for it any longer."""
    return "called when the thread is inactive" not in record.getMessage()


def set_up(form: Format, level: str, stream: TextIO | None = None) -> None:
    """Send all logs of the process to one stream, standard error by default."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Readable())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line a request of the HTTP client or of the thread pool says nothing that our own lines do not.
    for name in ("asyncio", "grpc", "aiohttp.access"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(level.upper())))
    logging.getLogger("watchdog.observers.inotify").addFilter(_is_trouble)
