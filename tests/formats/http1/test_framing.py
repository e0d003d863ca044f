"""How a body ends and whether the connection goes on: the fields by value, and every way to smuggle."""

from __future__ import annotations

import pytest

from corral import errors
from corral.errors import CorralError
from corral.formats.http1.framing import body_framing, expects_continue, keeps_alive
from tests.formats.http1.feeding import every_split, read_answers, read_requests

REFUSED: dict[bytes, tuple[type[CorralError], str]] = {
    b"Content-Length: 5\r\nContent-Length: 6": (
        errors.InvalidRequest,
        "Content-Length is given more than once: '5, 6'",
    ),
    b"Content-Length: 5\r\nContent-Length: 5": (
        errors.InvalidRequest,
        "Content-Length is given more than once: '5, 5'",
    ),
    b"Content-Length: 5, 5": (errors.InvalidRequest, "Content-Length is given more than once: '5, 5'"),
    b"Content-Length: 5,": (errors.InvalidRequest, "Content-Length is given more than once: '5,'"),
    b"Content-Length:": (errors.InvalidRequest, "Content-Length is not a whole number: ''"),
    b"Content-Length: five": (errors.InvalidRequest, "Content-Length is not a whole number: 'five'"),
    b"Content-Length: +5": (errors.InvalidRequest, "Content-Length is not a whole number: '+5'"),
    b"Content-Length: -5": (errors.InvalidRequest, "Content-Length is not a whole number: '-5'"),
    b"Content-Length: 0x5": (errors.InvalidRequest, "Content-Length is not a whole number: '0x5'"),
    b"Content-Length: 1_0": (errors.InvalidRequest, "Content-Length is not a whole number: '1_0'"),
    b"Content-Length: 5 5": (errors.InvalidRequest, "Content-Length is not a whole number: '5 5'"),
    b"Content-Length: 5.0": (errors.InvalidRequest, "Content-Length is not a whole number: '5.0'"),
    "Content-Length: ٥".encode(): (
        errors.InvalidRequest,
        "Content-Length is not a whole number: '\\xd9\\xa5'",
    ),
    b"Content-Length: " + b"9" * 19: (
        errors.InvalidRequest,
        f"Content-Length is too large: '{'9' * 19}'",
    ),
    b"Content-Length: 5\r\nTransfer-Encoding: chunked": (
        errors.InvalidRequest,
        "Content-Length and Transfer-Encoding are both given; send only one of them",
    ),
    b"Transfer-Encoding: chunked\r\nContent-Length: 0": (
        errors.InvalidRequest,
        "Content-Length and Transfer-Encoding are both given; send only one of them",
    ),
    b"Transfer-Encoding: gzip": (
        errors.InvalidRequest,
        "The last transfer coding is not chunked: 'gzip'",
    ),
    b"Transfer-Encoding: identity": (
        errors.InvalidRequest,
        "The last transfer coding is not chunked: 'identity'",
    ),
    b"Transfer-Encoding: chunked, gzip": (
        errors.InvalidRequest,
        "The last transfer coding is not chunked: 'chunked, gzip'",
    ),
    b"Transfer-Encoding: xchunked": (
        errors.InvalidRequest,
        "The last transfer coding is not chunked: 'xchunked'",
    ),
    b"Transfer-Encoding: chunked;a=b": (
        errors.InvalidRequest,
        "The last transfer coding is not chunked: 'chunked;a=b'",
    ),
    b'Transfer-Encoding: "chunked"': (
        errors.InvalidRequest,
        "The last transfer coding is not chunked: '\"chunked\"'",
    ),
    b"Transfer-Encoding:": (errors.InvalidRequest, "The last transfer coding is not chunked: ''"),
    b"Transfer-Encoding: chunked, chunked": (
        errors.InvalidRequest,
        "The transfer coding chunked is given more than once: 'chunked, chunked'",
    ),
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked": (
        errors.InvalidRequest,
        "The transfer coding chunked is given more than once: 'chunked, chunked'",
    ),
    b"Transfer-Encoding: , chunked": (
        errors.InvalidRequest,
        "Transfer-Encoding has an empty element: ', chunked'",
    ),
    b"Transfer-Encoding: gzip, chunked": (
        errors.NotImplementedHere,
        "Only the transfer coding chunked is understood, not 'gzip, chunked'",
    ),
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked": (
        errors.NotImplementedHere,
        "Only the transfer coding chunked is understood, not 'gzip, chunked'",
    ),
}


@pytest.mark.parametrize("lines", REFUSED, ids=lambda lines: repr(lines)[:60])
def test_doubtful_framing_is_refused(lines: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n\r\n"
    for feeds in every_split(head):
        assert read_requests(feeds) == ([], "ERROR", REFUSED[lines])


@pytest.mark.parametrize("lines", REFUSED, ids=lambda lines: repr(lines)[:60])
def test_doubtful_framing_of_an_answer_is_an_upstream_error(lines: bytes) -> None:
    outcome = read_answers([b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\n"])
    assert outcome.error is not None
    assert outcome.error[0] is errors.UpstreamError
    assert outcome.error[1].endswith(REFUSED[lines][1])


@pytest.mark.parametrize("first_line", [b"POST / HTTP/1.0", b"HTTP/1.0 200 OK"])
def test_http_1_0_has_no_transfer_coding(first_line: bytes) -> None:
    head = first_line + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    outcome = read_requests([head]) if first_line.startswith(b"POST") else read_answers([head])
    assert outcome.error is not None
    assert outcome.error[1].endswith("Transfer-Encoding is given in HTTP/1.0, which has none; use HTTP/1.1")


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        ({}, (None, False)),
        ({b"content-length": b"0"}, (0, False)),
        ({b"content-length": b"007"}, (7, False)),
        ({b"content-length": b"9" * 18}, (10**18 - 1, False)),
        ({b"transfer-encoding": b"chunked"}, (None, True)),
        ({b"transfer-encoding": b"CHUNKED"}, (None, True)),
    ],
    ids=repr,
)
def test_a_body_has_a_length_or_chunks_or_neither(
    fields: dict[bytes, bytes], framing: tuple[int | None, bool]
) -> None:
    assert body_framing(fields, (1, 1)) == framing


@pytest.mark.parametrize(
    ("connection", "in_1_1", "in_1_0"),
    [
        (None, True, False),
        (b"", True, False),
        (b"keep-alive", True, True),
        (b"Keep-Alive", True, True),
        (b"close", False, False),
        (b"CLOSE", False, False),
        (b"te, close", False, False),
        (b"close, keep-alive", False, False),
        (b"keep-alive,\tte", True, True),
        (b"enclosed", True, False),
        (b"not-keep-alive", True, False),
    ],
    ids=repr,
)
def test_a_connection_lives_on_by_version_and_option(
    connection: bytes | None, in_1_1: bool, in_1_0: bool
) -> None:
    fields = {} if connection is None else {b"connection": connection}
    assert keeps_alive(fields, (1, 1)) is in_1_1
    assert keeps_alive(fields, (1, 0)) is in_1_0


def test_only_http_1_1_clients_expect_100_continue() -> None:
    assert expects_continue({b"expect": b"100-continue"}, (1, 1))
    assert expects_continue({b"expect": b"100-Continue"}, (1, 1))
    assert not expects_continue({b"expect": b"100-continue"}, (1, 0))
    assert not expects_continue({b"expect": b"miracles"}, (1, 0))
    assert not expects_continue({}, (1, 1))


@pytest.mark.parametrize("value", [b"miracles", b"", b"100-continue, miracles"])
def test_an_expectation_that_can_not_be_met_is_refused(value: bytes) -> None:
    with pytest.raises(errors.ExpectationFailed) as caught:
        expects_continue({b"expect": value}, (1, 1))
    assert caught.value.status == 417
    assert "The only expectation that can be met is 100-continue" in caught.value.message


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        body_framing({b"content-length": b"x" * 5000}, (1, 1))
    assert len(caught.value.message) < 100
