"""Request targets in their four forms, and the Host field."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.http1.target import check_host, replace_host, split_target
from tests.formats.http1.feeding import read_requests


@pytest.mark.parametrize(
    ("target", "path", "query", "authority"),
    [
        ("/", "/", "", None),
        ("/v1/models?x=1&y", "/v1/models", "x=1&y", None),
        ("/?", "/", "", None),
        ("/a?b?c", "/a", "b?c", None),
        ("/a%2Fb%20c", "/a%2Fb%20c", "", None),
        ("//other/x", "//other/x", "", None),
        ("http://h", "/", "", b"h"),
        ("http://h?q", "/", "q", b"h"),
        ("HTTP://h/a?b", "/a", "b", b"h"),
        ("https://[::1]:8000/a/b", "/a/b", "", b"[::1]:8000"),
    ],
    ids=str,
)
def test_a_target_is_split(target: str, path: str, query: str, authority: bytes | None) -> None:
    assert split_target("GET", target) == (path, query, authority)


def test_the_asterisk_is_for_options_alone() -> None:
    assert split_target("OPTIONS", "*") == ("*", "", None)
    with pytest.raises(
        errors.InvalidRequest, match=r"The request target \* is only for OPTIONS, not for GET"
    ):
        split_target("GET", "*")


def test_connect_is_not_implemented() -> None:
    with pytest.raises(errors.NotImplementedHere, match="CONNECT is for proxies"):
        split_target("CONNECT", "example.org:443")


@pytest.mark.parametrize(
    "target", ["example.org:443", "v1/models", "ftp://h/x", "?x", "**", "http:/x", "http:x"]
)
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="must begin with /"):
        split_target("GET", target)


@pytest.mark.parametrize(
    "target", ["http:///x", "http://:80/x", "http://user@h/x", "http://h:x/", "http://[h/"]
)
def test_a_url_without_a_valid_host_is_refused(target: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="a URL without a valid host"):
        split_target("GET", target)


def test_http_1_1_requires_a_host_and_http_1_0_does_not() -> None:
    with pytest.raises(errors.InvalidRequest, match="The Host header is missing"):
        check_host({}, [], (1, 1))
    check_host({}, [], (1, 0))
    check_host({b"host": b""}, [(b"host", b"")], (1, 1))


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"Host: a\r\nHost: b", "The Host header is given more than once"),
        (b"Host: a\r\nhost: a", "The Host header is given more than once"),
        (b"Host:\r\nHost:", "The Host header is given more than once"),
        (b"Host: a b", "The Host header is not a valid host name with an optional port"),
        (b"Host: a/b", "The Host header is not a valid host name with an optional port"),
        (b"Host: a:b", "The Host header is not a valid host name with an optional port"),
        (b"Host: u@a", "The Host header is not a valid host name with an optional port"),
    ],
    ids=lambda value: repr(value) if isinstance(value, bytes) else "",
)
def test_a_repeated_or_invalid_host_is_refused(version: bytes, lines: bytes, message: str) -> None:
    outcome = read_requests([b"GET / HTTP/" + version + b"\r\n" + lines + b"\r\n\r\n"])
    assert outcome.error == (errors.InvalidRequest, message)


def test_the_host_of_an_absolute_target_replaces_the_field_in_both_views() -> None:
    fields = {b"host": b"other", b"x": b"1"}
    headers = [(b"x", b"1"), (b"host", b"other")]
    replace_host(b"h:80", fields, headers)
    assert fields == {b"host": b"h:80", b"x": b"1"}
    assert headers == [(b"host", b"h:80"), (b"x", b"1")]
