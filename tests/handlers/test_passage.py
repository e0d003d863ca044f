"""Which headers go on, by value; what is kept for the next time is what would be made anew."""

from __future__ import annotations

from corral.drivers.http_client import Address
from corral.formats import http1
from corral.handlers.passage import KEPT_MAX, Passage
from tests.handlers.gatehouse import request

HERE = Address("127.0.0.1", 8085)


def request_head(sent: bytes) -> http1.RequestHead:
    reader = http1.RequestReader(http1.Limits())
    reader.feed(sent)
    head = reader.next_event()
    assert isinstance(head, http1.RequestHead)
    return head


def answer_head(sent: bytes) -> http1.ResponseHead:
    reader = http1.ResponseReader(http1.Limits())
    reader.expect("GET")
    reader.feed(sent)
    head = reader.next_event()
    assert isinstance(head, http1.ResponseHead)
    return head


ID = b"x-request-id: r\r\n"


def test_a_request_goes_on_with_its_own_id_and_length_each_time() -> None:
    passage = Passage(varies_by_origin=False)
    head = request_head(request("/chat/completions?api_key=k&a=b", {"model": "a"}, headers={"x-a": "1"}))
    for id_line, length in ((b"x-request-id: r-1\r\n", 14), (b"x-request-id: r-2\r\n", 5)):
        sent = passage.request_head(head, HERE, id_line, length)
        assert sent.startswith(b"POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: 127.0.0.1:8085\r\n")
        assert b"\r\n" + id_line in sent
        assert b"\r\nx-a: 1\r\n" in sent
        assert b"authorization" not in sent
        assert sent.endswith(b"\r\ncontent-length: %d\r\n\r\n" % length)


def test_a_request_goes_to_whom_it_is_sent() -> None:
    passage = Passage(varies_by_origin=False)
    head = request_head(request("/v1/x", {"model": "a"}))
    for port in (8085, 8086):
        sent = passage.request_head(head, Address("::1", port), ID, 2)
        assert b"\r\nhost: [::1]:%d\r\n" % port in sent


def test_without_a_body_a_length_is_told_of_a_post_only() -> None:
    passage = Passage(varies_by_origin=False)
    get = request_head(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
    post = request_head(b"POST /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"content-length" not in passage.request_head(get, HERE, ID, 0)
    assert passage.request_head(post, HERE, ID, 0).endswith(b"content-length: 0\r\n\r\n")


def test_what_curl_calls_a_form_is_called_json() -> None:
    passage = Passage(varies_by_origin=False)
    form = {"content-type": "application/x-www-form-urlencoded"}
    head = request_head(request("/v1/x", {"model": "a"}, headers=form))
    assert b"\r\ncontent-type: application/json\r\n" in passage.request_head(head, HERE, ID, 2)


def test_an_answer_comes_back_without_what_the_gate_says_itself() -> None:
    text = (
        b"HTTP/1.1 200 OK\r\nServer: s\r\nDate: d\r\nAccess-Control-Allow-Origin: *\r\nX-Kept: 1\r\n"
        b"Cache-Control: public\r\nVary: accept\r\nX-Request-ID: theirs\r\nX-Queue-Wait-Ms: 9\r\n"
        b"Connection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\n"
    )
    for _ in range(2):  # the second time from memory
        passage = Passage(varies_by_origin=False)
        head = answer_head(text)
        expected = b"x-kept: 1\r\ncache-control: public\r\nvary: accept\r\n"
        assert passage.returned(head, is_event_stream=False) == expected
        assert passage.returned(head, is_event_stream=False) == expected
        assert passage.returned(head, is_event_stream=True) == b"x-kept: 1\r\nvary: accept\r\n"
    assert b"vary" not in Passage(varies_by_origin=True).returned(head, is_event_stream=False)


def test_the_memory_is_bounded() -> None:
    passage = Passage(varies_by_origin=False)
    for number in range(KEPT_MAX + 10):
        head = request_head(request(f"/v1/x{number}", {"model": "a"}))
        passage.request_head(head, HERE, ID, 2)
    assert len(passage._requests) <= KEPT_MAX
