"""What is known of a request before anything was asked of it."""

from __future__ import annotations

import pytest

from corral.handlers.call import request_id
from tests.handlers.gatehouse import request
from tests.handlers.unwired import call_for


def test_a_call_begins_with_its_id_as_the_first_header_of_every_answer() -> None:
    call, _ = call_for(request("/x", headers={"x-request-id": "mine"}))
    assert call.request_id == "mine"
    assert call.lines == b"x-request-id: mine\r\n"
    assert (call.key_id, call.model, call.error_code, call.gone) == ("-", "", None, False)


@pytest.mark.parametrize("wish", ["a", "A-z_0.9:/+=@", "x" * 128])
def test_a_sane_id_is_kept(wish: str) -> None:
    assert request_id(wish.encode()) == wish


@pytest.mark.parametrize("wish", [None, "", "x" * 129, "a b", "a\tb", "a,b", 'a"', "é", "a\n", "{}", "a|b"])
def test_any_other_gets_a_new_one_each_time(wish: str | None) -> None:
    sent = None if wish is None else wish.encode()
    first, second = request_id(sent), request_id(sent)
    assert first != second
    assert wish not in (first, second)
    assert request_id(first.encode()) == first


def test_an_id_that_is_given_twice_is_no_id() -> None:
    sent = b"GET / HTTP/1.1\r\nhost: x\r\nx-request-id: a\r\nx-request-id: b\r\n\r\n"
    call, _ = call_for(sent)
    assert call.request_id not in ("a", "b", "a, b")


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("", None),
        ("?other=1", None),
        ("?model=", None),
        ("?model=demo", "demo"),
        ("?model=org%2Fphi&model=second", "org/phi"),
        ("?x=1&model=a+b", "a b"),
        ("?model=%ff", "\ufffd"),
    ],
)
def test_the_first_value_of_a_name_in_the_query(query: str, value: str | None) -> None:
    call, _ = call_for(request(f"/x{query}"))
    assert call.query("model") == value
