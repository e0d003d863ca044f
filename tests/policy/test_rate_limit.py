from __future__ import annotations

import random
from collections import deque

import pytest

from corral.formats.key_file import Role
from corral.policy import rate_limit
from corral.policy.authentication import Principal, anonymous
from corral.policy.rate_limit import UNLIMITED, Admission, RateLimiter, SlidingWindow, WindowTable


def key(key_id: str, requests_per_minute: int) -> Principal:
    return Principal(key_id, Role.USER, requests_per_minute)


# One window -------------------------------------------------------------------------------------


def test_the_window_slides_and_does_not_jump() -> None:
    window = SlidingWindow()
    answers = [(now, window.admit(3, now).allowed) for now in (0, 20, 40, 59, 60.1, 60.2, 79.9, 80)]
    assert answers == [
        (0, True),
        (20, True),
        (40, True),
        (59, False),
        (60.1, True),
        (60.2, False),
        (79.9, False),
        (80, True),
    ]


def test_an_admission_says_how_much_is_left_and_for_how_long() -> None:
    window = SlidingWindow()
    assert window.admit(3, 100.0) == Admission(True, 3, 2, 60.0, 0.0)
    assert window.admit(3, 110.0) == Admission(True, 3, 1, 60.0, 0.0)
    assert window.admit(3, 130.0) == Admission(True, 3, 0, 60.0, 0.0)
    # The first leaves at 160, the last at 190.
    assert window.admit(3, 135.5) == Admission(False, 3, 0, 54.5, 24.5)
    assert window.admit(3, 160.0) == Admission(True, 3, 0, 60.0, 0.0)


def test_refused_requests_do_not_count() -> None:
    window = SlidingWindow()
    assert window.admit(1, 0.0).allowed
    assert [window.admit(1, float(second)).allowed for second in range(1, 60)] == [False] * 59
    assert window.admit(1, 60.0).allowed


def test_whoever_waits_as_told_is_admitted_and_whoever_comes_earlier_is_not() -> None:
    dice = random.Random(7)
    for _ in range(500):
        window, now = SlidingWindow(), dice.uniform(60, 1e7)
        while (answer := window.admit(5, now)).allowed:
            now += dice.uniform(0, 3)
        assert not window.admit(5, now + answer.retry_after_s - 0.001).allowed
        assert window.admit(5, now + answer.retry_after_s).allowed


def test_a_changed_limit_keeps_what_has_been_asked() -> None:
    window = SlidingWindow()
    for second in range(4):
        assert window.admit(4, float(second)).allowed
    assert window.admit(6, 10.0) == Admission(True, 6, 1, 60.0, 0.0)
    # Five stand in the window, which leave at 60, 61, 62, 63 and 70: under a limit of 2 four must go.
    assert window.admit(2, 11.0) == Admission(False, 2, 0, 59.0, 52.0)
    assert not window.admit(2, 62.9).allowed
    assert window.admit(2, 63.0) == Admission(True, 2, 0, 60.0, 0.0)


def test_the_window_agrees_with_a_plain_reading_of_the_rule() -> None:
    for seed in range(20):
        dice = random.Random(seed)
        window, admitted, now = SlidingWindow(), list[float](), 1000.0
        for _ in range(400):
            # Quarters are exact in binary, so that the very edge of the window is met often.
            now += dice.choice((0, 0, 0.25, 1, 1, 5, 15, 59.75, 60))
            limit = dice.choice((1, 3, 3, 3, 10))
            counting = [stamp for stamp in admitted if stamp > now - 60]
            answer = window.admit(limit, now)
            assert answer.allowed is (len(counting) < limit)
            if answer.allowed:
                admitted.append(now)
                assert answer.remaining == limit - len(counting) - 1
                continue
            # The first moment, among those at which something leaves, when there is room again.
            room_at = next(
                stamp + 60 for stamp in counting if sum(later > stamp for later in counting) < limit
            )
            assert (answer.remaining, answer.retry_after_s) == (0, room_at - now)
            assert answer.reset_s == counting[-1] + 60 - now


def test_a_window_remembers_no_more_than_its_limit() -> None:
    window = SlidingWindow()
    for step in range(10_000):
        window.admit(50, step * 0.01)
    remembered: deque[float] = window._leaving
    assert len(remembered) == 50


# Many windows -----------------------------------------------------------------------------------


def test_keys_are_limited_by_key_id_and_apart_from_each_other() -> None:
    limiter = RateLimiter()
    assert limiter.admit(key("a", 1), "10.0.0.1", 0.0).allowed
    assert not limiter.admit(key("a", 1), "10.0.0.2", 1.0).allowed
    assert limiter.admit(key("b", 1), "10.0.0.1", 1.0).allowed


def test_lines_of_one_key_id_share_a_window_and_keep_their_own_limits() -> None:
    limiter = RateLimiter()
    small, large = key("a", 2), key("a", 5)
    assert limiter.admit(small, "", 0.0).allowed
    assert limiter.admit(large, "", 0.0).allowed
    assert not limiter.admit(small, "", 1.0).allowed
    assert limiter.admit(large, "", 1.0).remaining == 2


def test_the_anonymous_are_limited_by_address() -> None:
    limiter, everybody = RateLimiter(), anonymous(1, admin=False)
    assert limiter.admit(everybody, "10.0.0.1", 0.0).allowed
    assert limiter.admit(everybody, "10.0.0.2", 0.0).allowed
    assert not limiter.admit(everybody, "10.0.0.1", 1.0).allowed


def test_an_address_that_reads_like_a_key_id_is_not_that_key() -> None:
    limiter = RateLimiter()
    assert limiter.admit(key("10.0.0.1", 1), "", 0.0).allowed
    assert limiter.admit(anonymous(1, admin=False), "10.0.0.1", 0.0).allowed


def test_zero_is_unlimited_and_remembers_nothing() -> None:
    limiter = RateLimiter()
    assert {limiter.admit(key("a", 0), "", 0.0) for _ in range(1000)} == {UNLIMITED}
    assert rate_limit.lines(UNLIMITED) == b""
    assert limiter.admit(key("a", 1), "", 0.0).allowed


def test_newcomers_sweep_out_windows_that_have_run_empty() -> None:
    table = WindowTable(1000)
    for number in range(100):
        table.admit(f"early-{number}", 5, 0.0)
    table.admit("early-7", 5, 30.0)
    for number in range(60):
        table.admit(f"late-{number}", 5, 61.0)
    # All but the one that was used again are gone, and that one still counts.
    assert len(table) == 61
    assert table.admit("early-7", 5, 62.0).remaining == 3


def test_a_flood_of_addresses_stays_within_the_bound_and_costs_no_newcomer_its_way_in() -> None:
    table = WindowTable(100)
    for number in range(1000):
        assert table.admit(f"flood-{number}", 1, number * 0.001).allowed
    assert len(table) == 100
    assert not table.admit("flood-999", 1, 2.0).allowed


def test_a_flood_does_not_forget_who_keeps_coming() -> None:
    table = WindowTable(100)
    assert table.admit("regular", 1, 0.0).allowed
    for number in range(1000):
        table.admit(f"flood-{number}", 1, number * 0.001)
        assert not table.admit("regular", 1, number * 0.001).allowed


def test_a_flood_of_addresses_does_not_touch_the_keys() -> None:
    limiter, everybody = RateLimiter(), anonymous(1, admin=False)
    assert limiter.admit(key("a", 1), "", 0.0).allowed
    for number in range(rate_limit.ADDRESSES_MAX + 10):
        limiter.admit(everybody, f"address-{number}", 0.0)
    assert not limiter.admit(key("a", 1), "", 1.0).allowed


# What clients are told --------------------------------------------------------------------------


def test_the_headers_of_an_admitted_request() -> None:
    assert rate_limit.lines(Admission(True, 100, 42, 60.0, 0.0)) == (
        b"x-ratelimit-limit-requests: 100\r\n"
        b"x-ratelimit-remaining-requests: 42\r\n"
        b"x-ratelimit-reset-requests: 1m0s\r\n"
    )


@pytest.mark.parametrize(
    ("reset_s", "expected"), [(59.25, b"59.25s"), (0.12, b"120ms"), (1.0, b"1s"), (60.0, b"1m0s")]
)
def test_the_headers_of_a_refused_request(reset_s: float, expected: bytes) -> None:
    assert rate_limit.lines(Admission(False, 3, 0, reset_s, 0.1)) == (
        b"x-ratelimit-limit-requests: 3\r\n"
        b"x-ratelimit-remaining-requests: 0\r\n"
        b"x-ratelimit-reset-requests: %b\r\n" % expected
    )
