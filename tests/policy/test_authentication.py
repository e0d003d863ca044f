from __future__ import annotations

import time
from datetime import date

import pytest

from corral.errors import InvalidApiKey
from corral.formats import key_file
from corral.formats.key_file import Role
from corral.formats.priority import Priority
from corral.policy.authentication import (
    KeyRing,
    Principal,
    anonymous,
    authenticate,
    permits,
    priority_of,
)

ALICE = "sk-alice-xyz789"
BATCH = "sk-batch-0123456789"
PLATFORM = "rpa_PLATFORM0TOKEN1OF2ITS3OWN"
TODAY = date(2027, 1, 31)


def ring(text: str = f"alice:{ALICE}\n", env_key: str | None = None) -> KeyRing:
    contents = key_file.parse(text)
    assert contents.problems == ()
    return KeyRing(contents.keys, requests_per_minute=100, env_key=env_key)


def refused(keys: KeyRing, authorization: str | None, x_api_key: str | None, today: date = TODAY) -> str:
    with pytest.raises(InvalidApiKey) as caught:
        authenticate(keys, authorization, x_api_key, today)
    return caught.value.message


# Presenting a key -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [
        pytest.param(f"Bearer {ALICE}", None, id="bearer"),
        pytest.param(f"bearer {ALICE}", None, id="lower-case scheme"),
        pytest.param(f"BEARER   {ALICE} ", None, id="upper-case scheme and more spaces"),
        pytest.param(ALICE, None, id="bare"),
        pytest.param(None, ALICE, id="x-api-key"),
        pytest.param(f"Bearer {PLATFORM}", ALICE, id="beside a platform's token"),
        pytest.param("Basic dXNlcjpwYXNz", ALICE, id="beside another scheme"),
        pytest.param("", ALICE, id="beside an empty header"),
        pytest.param(f"Bearer {ALICE}", PLATFORM, id="in Authorization beside another x-api-key"),
        pytest.param(f"Bearer {ALICE}", "", id="beside an empty x-api-key"),
    ],
)
def test_a_key_is_found_wherever_it_is_presented(authorization: str | None, x_api_key: str | None) -> None:
    assert authenticate(ring(), authorization, x_api_key, TODAY).key_id == "alice"


@pytest.mark.parametrize(("authorization", "x_api_key"), [(None, None), ("", None), (None, ""), ("", "")])
def test_without_any_key_the_header_is_missing(authorization: str | None, x_api_key: str | None) -> None:
    assert refused(ring(), authorization, x_api_key) == "Missing Authorization header"


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer ",
        "Bearer sk-wrong-xyz789",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE.upper()}",
        f"Bearer Bearer {ALICE}",
        f"Bearer {ALICE} and more",
        f"{ALICE} and more",
        f"Bearer{ALICE}",
        f"Basic {ALICE}",
        f"Bearer {key_file.hashed(ALICE)}",
        "Bearer schl\xfcssel",
        "Bearer \udcff\udcfe\udcfd\udcfc\udcfb\udcfa\udcf9\udcf8",
        "Bearer " + "k" * 100_000,
        " ",
    ],
)
def test_any_other_key_is_invalid_and_not_repeated(authorization: str) -> None:
    assert refused(ring(), authorization, None) == "Invalid API key"


def test_an_empty_ring_refuses_every_key() -> None:
    assert len(ring("")) == 0
    assert refused(ring(""), f"Bearer {ALICE}", None) == "Invalid API key"


def test_a_refusal_names_the_scheme_to_come_back_with() -> None:
    with pytest.raises(InvalidApiKey) as caught:
        authenticate(ring(), None, None, TODAY)
    assert caught.value.headers == (("www-authenticate", "Bearer"),)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


# Keys that end ----------------------------------------------------------------------------------


def test_an_expired_key_says_so_and_when() -> None:
    keys = ring(f"alice:{ALICE}:expires=2027-01-31\nbatch:{BATCH}")
    assert authenticate(keys, ALICE, None, date(2027, 1, 31)).key_id == "alice"
    assert refused(keys, ALICE, None, date(2027, 2, 1)) == "API key expired on 2027-01-31"
    assert refused(keys, f"Bearer {PLATFORM}", ALICE, date(2027, 2, 1)) == "API key expired on 2027-01-31"


def test_one_good_key_is_enough_beside_an_expired_one() -> None:
    keys = ring(f"alice:{ALICE}:expires=2020-01-01\nbatch:{BATCH}")
    assert authenticate(keys, BATCH, ALICE, TODAY).key_id == "batch"
    assert authenticate(keys, ALICE, BATCH, TODAY).key_id == "batch"


# Principals -------------------------------------------------------------------------------------


def test_a_principal_carries_all_that_its_line_says() -> None:
    keys = ring(
        f"alice:{ALICE}:rpm=60,priority=high,models=qwen-*,max_parallel=4,max_waiting=9,"
        "tokens_per_month=500,expires=2027-01-31,role=admin"
    )
    assert authenticate(keys, ALICE, None, TODAY) == Principal(
        key_id="alice",
        role=Role.ADMIN,
        requests_per_minute=60,
        by_address=False,
        priority=Priority.HIGH,
        models=("qwen-*",),
        max_parallel=4,
        max_waiting=9,
        tokens_per_month=500,
        expires=date(2027, 1, 31),
    )


@pytest.mark.parametrize(("options", "rate"), [("", 100), (":rpm=7", 7), (":0", 0)])
def test_the_default_rate_is_for_keys_without_their_own(options: str, rate: int) -> None:
    principal = authenticate(ring(f"alice:{ALICE}{options}"), ALICE, None, TODAY)
    assert principal.requests_per_minute == rate


def test_the_key_of_the_environment_is_an_admin_and_beats_the_file() -> None:
    keys = ring(f"alice:{ALICE}\nbatch:{BATCH}", env_key=ALICE)
    assert len(keys) == 2
    assert authenticate(keys, ALICE, None, TODAY) == Principal("env", Role.ADMIN, 100)
    assert authenticate(keys, BATCH, None, TODAY).role is Role.USER


def test_a_key_stored_as_a_digest_opens_and_the_digest_itself_does_not() -> None:
    keys = ring(f"alice:{key_file.hashed(ALICE)}")
    assert authenticate(keys, ALICE, None, TODAY).key_id == "alice"
    assert refused(keys, key_file.hashed(ALICE), None) == "Invalid API key"
    assert refused(keys, key_file.hashed(ALICE).removeprefix("sha256$"), None) == "Invalid API key"


@pytest.mark.parametrize(("admin", "role"), [(False, Role.USER), (True, Role.ADMIN)])
def test_the_anonymous_principal_is_limited_by_address(admin: bool, role: Role) -> None:
    assert anonymous(100, admin=admin) == Principal("anonymous", role, 100, by_address=True)


# Priority ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "asked", "expected"),
    [
        (None, None, Priority.NORMAL),
        (None, "high", Priority.HIGH),
        (None, "low", Priority.LOW),
        (None, "whatever", Priority.NORMAL),
        (Priority.HIGH, None, Priority.HIGH),
        (Priority.HIGH, "2", Priority.NORMAL),
        (Priority.NORMAL, "high", Priority.NORMAL),
        (Priority.LOW, "high", Priority.LOW),
        (Priority.LOW, "nonsense", Priority.LOW),
    ],
)
def test_a_keys_priority_is_its_default_and_the_best_it_can_have(
    given: Priority | None, asked: str | None, expected: Priority
) -> None:
    principal = Principal("alice", Role.USER, 100, priority=given)
    assert priority_of(principal, asked) is expected


# Models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        ("*", "anything/at:all@v1+x.y-z_0", True),
        ("llama-3b", "llama-3b", True),
        ("llama-3b", "llama-3b-instruct", False),
        ("llama-3b", "a-llama-3b", False),
        ("qwen-*", "qwen-7b", True),
        ("qwen-*", "qwen-", True),
        ("qwen-*", "qwen", False),
        ("qwen-*", "Qwen-7b", False),
        ("*-7b", "qwen-7b", True),
        ("*-7b", "qwen-7b-q4", False),
        ("*7b*", "qwen-7b-q4", True),
        ("q*-*b", "qwen-x-7b", True),
        ("q**b", "qwen-7b", True),
        ("a*ab", "aab", True),
        ("a*ab", "ab", False),
        ("qwen-?b", "qwen-7b", True),
        ("qwen-?b", "qwen-72b", False),
        ("qwen-?b", "qwen-b", False),
        ("*?", "q", True),
        ("a|b-*", "a", True),
        ("a|b-*", "b-1", True),
        ("a|b-*", "c", False),
        ("a.b", "axb", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("a+", "aa", False),
        ("(a)", "a", False),
        ("hf:org/name", "hf:org/name", True),
    ],
)
def test_patterns_mean_star_and_question_mark_and_nothing_else(
    patterns: str, model: str, allowed: bool
) -> None:
    principal = authenticate(ring(f"alice:{ALICE}:models={patterns}"), ALICE, None, TODAY)
    assert permits(principal, model) is allowed


def test_patterns_with_many_stars_take_no_exploding_time() -> None:
    principal = authenticate(ring(f"alice:{ALICE}:models={'a*' * 50}b"), ALICE, None, TODAY)
    before = time.process_time()
    assert permits(principal, "a" * 255) is False
    # Backtracking over 50 stars would take longer than the universe has; this takes a millisecond.
    assert time.process_time() - before < 1


# Limits -----------------------------------------------------------------------------------------


def test_how_many_a_key_may_run_is_known_where_its_lines_agree() -> None:
    keys = ring(
        f"alice:{ALICE}:max_parallel=4\n"
        "free:sk-free-0123456789\n"
        f"batch:{BATCH}:max_parallel=1\nbatch:sk-batch-9876543210:max_parallel=1\n"
        "torn:sk-torn-0123456789:max_parallel=1\ntorn:sk-torn-9876543210\n",
        env_key="sk-env-0123456789",
    )
    assert keys.parallel_limits() == {"alice": 4, "free": None, "batch": 1, "env": None}
