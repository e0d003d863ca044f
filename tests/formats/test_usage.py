"""Token counts in the ends of an answer, in every dialect that llama-server speaks."""

from __future__ import annotations

import json

import pytest

from corral.formats.usage import WINDOW_BYTES, TokenCounts, read

CHAT = (
    b'{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"Hi"}}],'
    b'"usage":{"completion_tokens":12,"prompt_tokens":34,"total_tokens":46,'
    b'"prompt_tokens_details":{"cached_tokens":30}},"timings":{"cache_n":30,"prompt_n":4,"predicted_n":12}}'
)
CHUNK = (
    b'data: {"choices":[],"object":"chat.completion.chunk",'
    b'"usage":{"completion_tokens":12,"prompt_tokens":34,"total_tokens":46}}\n\n'
)
TIMINGS = b'data: {"choices":[{"delta":{}}],"timings":{"prompt_n":4,"prompt_ms":1.5,"predicted_n":12}}\n\n'
DONE = b"data: [DONE]\n\n"
MESSAGE_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"content":[],'
    b'"usage":{"input_tokens":34,"output_tokens":0}}}\n\n'
)
MESSAGE_DELTA = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":12}}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
EMBEDDINGS = (
    b'{"model":"m","object":"list","usage":{"prompt_tokens":34,"total_tokens":34},"data":[{"embedding":['
    + b"0.25," * 10_000
    + b"0.5]}]}"
)
NATIVE = b'{"content":"Hi","tokens_predicted":12,"tokens_evaluated":34,"stop":true}'


@pytest.mark.parametrize(
    ("first", "last", "counts"),
    [
        (CHAT, CHAT, (34, 12)),
        (b'data: {"choices":[]}\n\n', CHUNK + DONE, (34, 12)),
        (b"data: {}\n\n", TIMINGS + DONE, (4, 12)),
        (MESSAGE_START, MESSAGE_DELTA + MESSAGE_STOP, (34, 12)),
        (EMBEDDINGS, EMBEDDINGS, (34, None)),
        (NATIVE, NATIVE, (34, 12)),
        (b'{"usage": {"prompt_tokens" : 7 }}', b"", (7, None)),
        (b"data: {}\n\n", b"data: {}\n\n", (None, None)),
        (b"", b"", (None, None)),
    ],
    ids=[
        *("chat", "stream with usage", "stream with timings", "Anthropic's stream", "embeddings"),
        *("llama.cpp's own", "spaces", "a stream that was cut", "nothing"),
    ],
)
def test_counts_are_found_wherever_a_dialect_has_them(first: bytes, last: bytes, counts: TokenCounts) -> None:
    assert read(first, last) == counts


def test_usage_counts_more_than_timings_which_leave_out_what_was_cached() -> None:
    assert read(b"", CHAT) == (34, 12)
    assert read(b"", TIMINGS + CHUNK) == read(b"", CHUNK + TIMINGS) == (34, 12)


def test_the_last_word_counts() -> None:
    assert read(b'{"output_tokens":1}', b'{"output_tokens":5} {"output_tokens":9}') == (None, 9)


def test_a_text_cannot_fake_a_count() -> None:
    lie = json.dumps({"content": 'My "completion_tokens": 999999 and "prompt_tokens":1'}).encode()
    assert read(lie, lie) == (None, None)
    for cut in range(len(lie)):
        assert read(lie[:cut], lie[cut:]) == (None, None)
    twice = json.dumps({"arguments": lie.decode()}).encode()
    assert read(twice, twice) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        b'"prompt_tokens": null',
        b'"prompt_tokens": -4',
        b'"prompt_tokens": 4.5',
        b'"prompt_tokens": 4e3',
        b'"prompt_tokens": "4"',
        b'"xprompt_tokens": 4',
        b'"prompt_tokens": 1234567890123',
    ],
)
def test_what_is_no_whole_number_of_that_name_is_no_count(text: bytes) -> None:
    assert read(text, text) == (None, None)


def test_only_the_ends_of_an_answer_are_looked_at() -> None:
    far = b'"prompt_tokens": 4, ' + b" " * WINDOW_BYTES
    assert read(b"", far) == (None, None)
    assert read(far, b"") == (4, None)
    assert read(b" " * WINDOW_BYTES + b'"prompt_tokens": 4,', b"") == (None, None)
