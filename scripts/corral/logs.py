"""Where log lines go: to standard error for whoever watches, and to the boot log for whoever comes later."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from corral.drivers.log_files import LogFile
from corral.settings import LogFormat


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = f"{when} {record.levelname:<7} {record.getMessage()}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info is not None:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


class FileHandler(logging.Handler):
    """Hands lines to the log thread, so that logging never waits for a disk."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            # A log line that can't be made must not fail the request that it is about.
            self.handleError(record)
        else:
            self._file.write(line.encode("utf-8", "replace") + b"\n")


def log_to(file: LogFile, form: LogFormat) -> None:
    """Send the program's log to standard error and to `file`."""
    formatter = JsonFormatter() if form is LogFormat.JSON else TextFormatter()
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers.clear()
    for handler in (logging.StreamHandler(sys.stderr), FileHandler(file)):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    # It warns of every write to a client that has reset an encrypted connection: lines at anybody's will.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
