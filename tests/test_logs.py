"""Log lines, in text and as JSON: to standard error and to the log thread, and never in anybody's way."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.drivers.log_files import LogFiles
from corral.logs import FileHandler, JsonFormatter, TextFormatter, log_to
from corral.settings import LogFormat
from tests import root_logger

log = logging.getLogger("corral.test")


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    with root_logger.put_back() as logger:
        yield logger


class File:
    """What a LogFile is handed."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def record(
    message: str, *arguments: object, level: int = logging.WARNING, exc_info: Any = None
) -> logging.LogRecord:
    made = logging.LogRecord("corral.fleet", level, "file.py", 1, message, arguments, exc_info)
    made.created = 1_700_000_000.123
    return made


def failure() -> Any:
    try:
        raise ValueError("why\nit failed")
    except ValueError:
        return sys.exc_info()


def test_a_text_line_is_time_level_and_message() -> None:
    line = TextFormatter().format(record("%s died (%d)", "demo", 3))
    assert line == "2023-11-14T22:13:20Z WARNING demo died (3)"
    assert TextFormatter().format(record("ok", level=logging.INFO)) == "2023-11-14T22:13:20Z INFO    ok"


def test_a_failure_in_text_is_followed_by_its_traceback() -> None:
    first, second, *_, last = TextFormatter().format(record("it failed", exc_info=failure())).splitlines()
    assert first == "2023-11-14T22:13:20Z WARNING it failed"
    assert second == "Traceback (most recent call last):"
    assert last == "it failed"


def test_a_json_line_is_one_object_on_one_line() -> None:
    line = JsonFormatter().format(record("%s\nsaid ü", "demo", exc_info=failure()))
    assert "\n" not in line
    document = json.loads(line)
    assert document.pop("exception").endswith("ValueError: why\nit failed")
    assert document == {
        "time": "2023-11-14T22:13:20.123+00:00",
        "level": "warning",
        "logger": "corral.fleet",
        "message": "demo\nsaid ü",
    }
    assert "exception" not in json.loads(JsonFormatter().format(record("fine")))


@pytest.mark.parametrize("form", LogFormat)
def test_a_line_goes_to_standard_error_and_to_the_file(
    form: LogFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    files = LogFiles(tmp_path, "box")
    log_to(file := files.open("_boot", "boot"), form)
    log.info("the %s line", "first")
    log.debug("not for people")
    logging.getLogger("asyncio").warning("socket.send() raised exception.")
    assert files.stop()
    [written] = file.path.read_text().splitlines()
    assert stderr.getvalue() == written + "\n"
    if form is LogFormat.JSON:
        assert json.loads(written)["message"] == "the first line"
    else:
        assert written.endswith(" INFO    the first line")


def test_logging_anew_replaces_what_was_there(root: logging.Logger) -> None:
    for _ in range(2):
        log_to(File(), LogFormat.TEXT)  # type: ignore[arg-type]
    assert len(root.handlers) == 2


def test_what_no_text_can_hold_is_written_as_far_as_it_goes() -> None:
    file = File()
    handler = FileHandler(file)  # type: ignore[arg-type]
    handler.setFormatter(TextFormatter())
    handler.handle(record("a \udcff name"))
    assert file.data == b"2023-11-14T22:13:20Z WARNING a ? name\n"


def test_a_message_that_cannot_be_made_is_reported_and_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    file = File()
    log_to(file, LogFormat.TEXT)  # type: ignore[arg-type]
    log.warning("%d", "no number")
    log.warning("the next one")
    assert file.data.endswith(b" WARNING the next one\n")
    assert "no number" in stderr.getvalue()
