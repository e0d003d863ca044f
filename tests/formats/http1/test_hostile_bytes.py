"""Random damage to good messages: whatever comes, the readers give a clear error or read on.

The damage is drawn from a seed, so a failure can be had again. Each damaged message is read whole and
in random pieces, and both must come to the same end.
"""

from __future__ import annotations

import random
import time

import pytest

from corral.errors import InvalidRequest, UpstreamError
from corral.formats.http1 import Limits
from tests.formats.http1.feeding import Outcome, read_answers, read_requests
from tests.formats.http1.samples import ANSWERS, PIPELINED, REQUESTS

SPARKS = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"f", b"0\r\n", b"\x16",
    b"\xff", b"#", b"HTTP/1.1", b"chunked", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
]  # fmt: skip
LIMITS = Limits(headers_max=6, line_max_bytes=120, head_max_bytes=240)
BUDGET_S = 0.5


def damaged(good: bytes, chance: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            data[at:at] = chance.choice(SPARKS)
        elif kind == 1:
            del data[at : at + chance.randint(1, 4)]
        elif kind == 2:
            data[at : at + 1] = chance.choice(SPARKS)
        elif kind == 3:
            data[at:at] = data[at : at + 20] * chance.randint(1, 20)
        else:
            data[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(data)


def random_pieces(data: bytes, chance: random.Random) -> list[bytes]:
    feeds = []
    while data:
        size = chance.randint(1, chance.choice([1, 3, 10, 100]))
        feeds.append(data[:size])
        data = data[size:]
    return feeds


def without_cut_bodies(outcome: Outcome) -> Outcome:
    """How much of a body came out before an error depends on the pieces; nothing else does."""
    return outcome._replace(
        messages=[message if message.ended else message._replace(body=b"") for message in outcome.messages]
    )


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_request_is_read_or_refused_and_the_pieces_make_no_difference(seed: int) -> None:
    chance = random.Random(seed)
    goods = [*REQUESTS.values(), PIPELINED[:400]]
    refused = 0
    rounds = 0
    deadline = time.monotonic() + BUDGET_S
    while time.monotonic() < deadline:
        data = damaged(chance.choice(goods), chance)
        whole = read_requests([data], eof=True, limits=LIMITS)
        cut = read_requests(random_pieces(data, chance), eof=True, limits=LIMITS)
        assert without_cut_bodies(cut) == without_cut_bodies(whole), data
        assert whole.state in ("CLOSED", "ERROR")
        if whole.error is not None:
            assert issubclass(whole.error[0], InvalidRequest)
            refused += 1
        rounds += 1
    # Both ends must be met often, or the damage is too much or too little to test anything.
    assert refused > rounds / 4
    assert rounds - refused > rounds / 20


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_answer_is_read_or_refused_and_the_pieces_make_no_difference(seed: int) -> None:
    chance = random.Random(seed)
    refused = 0
    rounds = 0
    deadline = time.monotonic() + BUDGET_S
    while time.monotonic() < deadline:
        method, good, _ = chance.choice(list(ANSWERS.values()))
        data = damaged(good, chance)
        whole = read_answers([data], [method], eof=True, limits=LIMITS)
        cut = read_answers(random_pieces(data, chance), [method], eof=True, limits=LIMITS)
        assert without_cut_bodies(cut) == without_cut_bodies(whole), data
        if whole.error is not None:
            assert whole.error[0] is UpstreamError
            refused += 1
        rounds += 1
    assert refused > rounds / 4
    assert rounds - refused > rounds / 20


@pytest.mark.parametrize("seed", range(2))
def test_noise_is_refused_or_waits_for_more(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(500):
        data = chance.randbytes(chance.randint(1, 400))
        for outcome in (read_requests([data], limits=LIMITS), read_answers([data], limits=LIMITS)):
            assert outcome.messages == []
            assert outcome.state in ("IDLE", "HEAD", "ERROR")
