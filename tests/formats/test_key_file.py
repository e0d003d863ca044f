from __future__ import annotations

import hashlib
from datetime import date
from pathlib import Path

import pytest

from corral.formats import key_file
from corral.formats.key_file import KeyFileError, KeyRecord, Role
from corral.formats.priority import Priority

KEY = "sk-test-abc123def456"
OTHER_KEY = "sk-other-xyz789uvw012"
EXAMPLE = Path(__file__).parents[2] / "api_keys.example.txt"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def only_record(line: str) -> KeyRecord:
    contents = key_file.parse(line)
    assert contents.problems == ()
    (record,) = contents.keys
    return record


def only_problem(text: str) -> str:
    contents = key_file.parse(text)
    ((_, message),) = contents.problems
    return message


# Lines that load --------------------------------------------------------------------------------


def test_a_bare_line_leaves_everything_at_its_default() -> None:
    record = only_record(f"production:{KEY}")
    assert record == KeyRecord("production", digest(KEY))
    assert record.requests_per_minute is None
    assert record.priority is None
    assert record.models == ("*",)
    assert record.role is Role.USER
    assert record.expires is None


def test_every_option_lands_in_its_field() -> None:
    record = only_record(
        f"alice:{KEY}:rpm=60,priority=high,models=qwen-*|llama-3b,max_parallel=4,max_waiting=9,"
        "tokens_per_month=50000000,expires=2027-01-31,role=admin"
    )
    assert record == KeyRecord(
        key_id="alice",
        digest=digest(KEY),
        requests_per_minute=60,
        priority=Priority.HIGH,
        models=("qwen-*", "llama-3b"),
        max_parallel=4,
        max_waiting=9,
        tokens_per_month=50_000_000,
        expires=date(2027, 1, 31),
        role=Role.ADMIN,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param("120", 120, id="a bare number is the rate"),
        pytest.param("role=admin,120", 120, id="a bare number anywhere"),
        pytest.param("rpm=0", 0, id="zero is unlimited"),
        pytest.param("0", 0, id="bare zero"),
        pytest.param("role=user", None, id="none is the default"),
        pytest.param("", None, id="nothing after the second colon"),
    ],
)
def test_the_rate_limit_is_read(options: str, expected: int | None) -> None:
    assert only_record(f"a:{KEY}:{options}").requests_per_minute == expected


@pytest.mark.parametrize("word", ["high", "normal", "low"])
def test_priorities_go_by_their_words(word: str) -> None:
    assert only_record(f"a:{KEY}:priority={word}").priority is Priority[word.upper()]


def test_only_the_first_two_colons_split_so_model_names_may_hold_more() -> None:
    assert only_record(f"a:{KEY}:models=qwen3:8b|hf:org/name").models == ("qwen3:8b", "hf:org/name")


def test_a_key_may_be_stored_as_its_digest() -> None:
    plain = only_record(f"a:{KEY}")
    assert only_record(f"a:{key_file.hashed(KEY)}") == plain
    assert key_file.hashed(KEY) == "sha256$" + hashlib.sha256(KEY.encode()).hexdigest()


def test_white_space_is_trimmed_around_every_part() -> None:
    line = f"  \t alice : {KEY} : rpm = 60 , models = a* | b , role = admin \t\r"
    record = only_record(line)
    assert (record.key_id, record.digest) == ("alice", digest(KEY))
    assert (record.requests_per_minute, record.models, record.role) == (60, ("a*", "b"), Role.ADMIN)


def test_comments_count_at_the_start_of_a_line_only() -> None:
    text = f"# a comment\n   # an indented one\n#gone:{KEY}\n\nkept:{KEY}:role=user\n"
    contents = key_file.parse(text)
    assert [record.key_id for record in contents.keys] == ["kept"]
    assert contents.problems == ()
    assert (
        only_problem(f"a:{KEY}:rpm=60 # for now") == "the option rpm must be a whole number from 0 to 1000000"
    )


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["unix", "dos"])
def test_several_lines_may_share_a_key_id(line_end: str) -> None:
    contents = key_file.parse(f"a:{KEY}{line_end}a:{OTHER_KEY}:rpm=5{line_end}")
    assert [(record.key_id, record.digest) for record in contents.keys] == [
        ("a", digest(KEY)),
        ("a", digest(OTHER_KEY)),
    ]
    assert contents.problems == ()


@pytest.mark.parametrize(
    "key", ["a2345678", "Z" * 128, "-_-_-_-_", "0" * 64], ids=["8", "128", "signs", "hex"]
)
def test_keys_of_the_allowed_lengths_and_characters_load(key: str) -> None:
    assert only_record(f"a:{key}").digest == digest(key)


@pytest.mark.parametrize("key_id", ["a", "_a", "0", "A.b_c@d+e-f", "x" * 64])
def test_key_ids_of_the_allowed_characters_load(key_id: str) -> None:
    assert only_record(f"{key_id}:{KEY}").key_id == key_id


def test_a_short_key_loads_with_a_warning() -> None:
    contents = key_file.parse(f"long:{'k' * 16}\nshort:{'k' * 15}")
    assert [record.key_id for record in contents.keys] == ["long", "short"]
    assert contents.warnings == ((2, "the key has fewer than 16 characters: make a longer one"),)


# Lines that are rejected ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("alice", id="no colon"),
        pytest.param("alice:", id="no key"),
        pytest.param(f":{KEY}", id="no key_id"),
        pytest.param("alice:sk-1234", id="seven characters"),
        pytest.param(f"alice:{'k' * 129}", id="129 characters"),
        pytest.param("alice:sk-with space", id="a space in the key"),
        pytest.param("alice:sk-with.dot", id="a dot in the key"),
        pytest.param("alice:sk-schlüssel", id="an umlaut in the key"),
        pytest.param(f"alice:sha256${'A' * 64}", id="upper-case digest"),
        pytest.param(f"alice:sha256${'a' * 63}", id="short digest"),
        pytest.param(f"alice:sha256${'a' * 65}", id="long digest"),
        pytest.param(f"alice:sha1${'a' * 40}", id="another digest"),
        pytest.param(f"alice smith:{KEY}", id="a space in the key_id"),
        pytest.param(f"-alice:{KEY}", id="a key_id like a flag"),
        pytest.param(f"{'x' * 65}:{KEY}", id="a long key_id"),
        pytest.param(f"ali|ce:{KEY}", id="a bar in the key_id"),
        pytest.param(f"env:{KEY}", id="reserved: env"),
        pytest.param(f"anonymous:{KEY}", id="reserved: anonymous"),
        pytest.param(f"a:{KEY}:" + "rpm=1," * 700, id="a line too long"),
    ],
)
def test_a_malformed_line_is_rejected_and_the_others_load(line: str) -> None:
    contents = key_file.parse(f"first:{OTHER_KEY}-1\n{line}\nlast:{OTHER_KEY}-2")
    assert [record.key_id for record in contents.keys] == ["first", "last"]
    assert [problem.line_number for problem in contents.problems] == [2]


@pytest.mark.parametrize(
    "options",
    [
        "colour=red",
        "RPM=60",
        "rpm",
        "admin",
        "rpm=",
        "rpm=-1",
        "rpm=+1",
        "rpm=1_0",
        "rpm=1.5",
        "rpm=\u0661",
        "rpm=1000001",
        "rpm=" + "9" * 100,
        "60,",
        ",60",
        "rpm=60,,role=admin",
        "rpm=60,rpm=60",
        "60,60",
        "60,rpm=60",
        "role=admin,role=user",
        "priority=urgent",
        "priority=High",
        "priority=1",
        "models=",
        "models=a||b",
        "models=a b",
        "max_parallel=0",
        "max_waiting=-1",
        "tokens_per_month=0",
        "tokens_per_month=5e7",
        "expires=2027-02-29",
        "expires=20270131",
        "expires=2027-1-31",
        "expires=2027-W04-7",
        "expires=31.01.2027",
        "expires=0000-01-01",
        "role=Admin",
        "role=root",
    ],
)
def test_an_option_that_is_not_understood_rejects_its_line(options: str) -> None:
    contents = key_file.parse(f"a:{KEY}:{options}")
    assert contents.keys == ()
    assert [problem.line_number for problem in contents.problems] == [1]


def test_the_message_names_what_would_be_right() -> None:
    assert only_problem(f"a:{KEY}:role=root") == "the option role must be user or admin"
    assert (
        only_problem(f"a:{KEY}:rpm=5,expires=soon") == "the option expires must be a date such as 2027-01-31"
    )
    assert only_problem(f"a:{KEY}:role") == "the option role must be user or admin"
    assert only_problem(f"a:{KEY}:rpm=5,rpm=6") == "the option rpm is given twice"
    assert only_problem(f"a:{KEY}:rpm=5,colour=red").startswith("option 2 is none of rpm, priority, models")


def test_the_second_line_with_the_same_key_is_rejected_in_whichever_form() -> None:
    contents = key_file.parse(f"a:{KEY}\n\nb:{KEY}\nc:{key_file.hashed(KEY)}:role=admin")
    assert [record.key_id for record in contents.keys] == ["a"]
    assert contents.problems == ((3, "the same key stands on line 1"), (4, "the same key stands on line 1"))


def test_a_slip_in_a_restricted_line_does_not_let_a_generous_one_take_its_place() -> None:
    contents = key_file.parse(f"a:{KEY}:models=tiny,rpn=5\na:{KEY}:role=admin")
    assert contents.keys == ()
    assert [problem.line_number for problem in contents.problems] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        "SECRETSECRETSECRET",
        "SECRETSECRETSECRET:short",
        "a:SECRETSECRET.SECRET",
        "a:b:SECRETSECRETSECRET",
        "a:rpm=60:SECRETSECRETSECRET",
        f"a:{KEY}:SECRETSECRETSECRET",
        f"a:{KEY}:SECRETSECRETSECRET=5",
        f"a:{KEY}:rpm=SECRETSECRETSECRET",
        f"a:{KEY}:expires=SECRETSECRETSECRET",
        f"a:{KEY}:role=SECRETSECRETSECRET",
        f"SECRET:SECRET:{KEY}",
    ],
)
def test_no_message_repeats_any_part_of_a_line(line: str) -> None:
    message = only_problem(line)
    assert "SECRET" not in message
    assert KEY not in message


def test_a_record_does_not_show_its_digest() -> None:
    record = only_record(f"a:{KEY}")
    assert record.digest.hex() not in repr(record)
    assert repr(record.digest) not in repr(record)


# The text as a whole ----------------------------------------------------------------------------


def test_bytes_become_text_without_their_byte_order_mark() -> None:
    assert key_file.decode(b"\xef\xbb\xbfa:b # \xc3\xa9") == "a:b # é"


def test_bytes_that_are_not_utf_8_are_refused_without_being_shown() -> None:
    with pytest.raises(KeyFileError, match=r"^it is not UTF-8 text \(at byte 6\)$") as caught:
        key_file.decode(b"SECRET\xff")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_size_is_bounded() -> None:
    assert len(key_file.decode(b"#" * key_file.FILE_BYTES_MAX)) == key_file.FILE_BYTES_MAX
    with pytest.raises(KeyFileError, match="larger than 4194304 bytes"):
        key_file.decode(b"#" * (key_file.FILE_BYTES_MAX + 1))


def test_the_number_of_lines_is_bounded() -> None:
    assert key_file.parse("\n" * (key_file.LINES_MAX - 1)).keys == ()
    with pytest.raises(KeyFileError, match="more than 10000 lines"):
        key_file.parse("\n" * key_file.LINES_MAX)


def test_only_line_feeds_end_a_line_so_numbers_agree_with_editors() -> None:
    contents = key_file.parse(f"# one\x0b\x0c\u2028\x85\nbroken\na:{KEY}")
    assert [problem.line_number for problem in contents.problems] == [2]
    assert [record.key_id for record in contents.keys] == ["a"]


@pytest.mark.parametrize(
    ("today", "expired"), [(date(2027, 1, 30), False), (date(2027, 1, 31), False), (date(2027, 2, 1), True)]
)
def test_a_key_holds_through_its_last_day(today: date, expired: bool) -> None:
    assert key_file.has_expired(date(2027, 1, 31), today) is expired
    assert key_file.has_expired(None, today) is False


# Editing ----------------------------------------------------------------------------------------

TEXT = f"# who\n\n alice : {KEY} : rpm=60 \n# alice:commented\nbob:{OTHER_KEY}\r\n"


def test_a_line_is_added_at_the_end_and_nothing_else_changes() -> None:
    key = "sk-new-0123456789abcdef"
    assert key_file.add_key(TEXT, "carol", key) == f"{TEXT}carol:{key}\n"
    assert key_file.add_key(TEXT, "carol", key, "rpm=5") == f"{TEXT}carol:{key}:rpm=5\n"
    assert key_file.add_key("", "carol", key) == f"carol:{key}\n"
    assert key_file.add_key("# no end", "carol", key) == f"# no end\ncarol:{key}\n"


@pytest.mark.parametrize(
    ("key_id", "key", "options"),
    [
        pytest.param("alice", "sk-new-0123456789abcdef", "", id="a key_id that is there"),
        pytest.param("#carol", "sk-new-0123456789abcdef", "", id="a key_id that makes a comment"),
        pytest.param("c:d", "sk-new-0123456789abcdef", "", id="a key_id with a colon"),
        pytest.param("c\nd", "sk-new-0123456789abcdef", "", id="a key_id of two lines"),
        pytest.param("env", "sk-new-0123456789abcdef", "", id="a reserved key_id"),
        pytest.param("carol", KEY, "", id="a key that is there"),
        pytest.param("carol", "sk-new-0123456789:5", "", id="a key with an option in it"),
        pytest.param("carol", "sk-new", "", id="a key too short"),
        pytest.param("carol", "sk-new-0123456789abcdef", "rpm=x", id="a bad option"),
        pytest.param("carol", "sk-new-0123456789abcdef", "\nrpm=5", id="options on a line of their own"),
        pytest.param("carol", "sk-new-0123456789abcdef", "models=" + "m" * 4096, id="a line too long"),
    ],
)
def test_what_the_reader_would_reject_is_not_added(key_id: str, key: str, options: str) -> None:
    with pytest.raises(KeyFileError):
        key_file.add_key(TEXT, key_id, key, options)


def test_a_full_file_takes_no_further_line() -> None:
    with pytest.raises(KeyFileError, match="lines"):
        key_file.add_key("#\n" * (key_file.LINES_MAX - 1), "carol", KEY)
    with pytest.raises(KeyFileError, match="larger"):
        key_file.add_key("#" * key_file.FILE_BYTES_MAX, "carol", KEY)


def test_removing_takes_every_line_of_the_key_id_and_leaves_the_rest_as_it_was() -> None:
    assert key_file.remove_key(TEXT, "alice") == f"# who\n\n# alice:commented\nbob:{OTHER_KEY}\r\n"
    assert key_file.remove_key(f"a:{KEY}\n# b\na:broken\n", "a") == "# b\n"
    with pytest.raises(KeyFileError, match="there is no key_id carol"):
        key_file.remove_key(TEXT, "carol")


def test_a_replaced_key_keeps_its_options_its_spacing_and_its_form() -> None:
    key = "sk-new-0123456789abcdef"
    assert key_file.replace_key(TEXT, "alice", key) == TEXT.replace(KEY, key)
    assert key_file.replace_key(TEXT, "bob", key) == TEXT.replace(OTHER_KEY, key)
    stored = f"a:{key_file.hashed(KEY)}:role=admin"
    assert key_file.replace_key(stored, "a", key) == f"a:{key_file.hashed(key)}:role=admin"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        pytest.param(TEXT, "sk-new-0123456789abcdef", "stands nowhere", id="not there"),
        pytest.param(f"c:{KEY}\nc:{OTHER_KEY}", "sk-new-0123456789abcdef", "more than one line", id="twice"),
        pytest.param(f"a:{OTHER_KEY}\nc:{KEY}", OTHER_KEY, "stands on line 1", id="another one's key"),
        pytest.param(f"c:{KEY}:rpm=x", "sk-new-0123456789abcdef", "option rpm", id="a line still broken"),
    ],
)
def test_a_key_that_can_not_be_replaced_says_why(text: str, key: str, message: str) -> None:
    with pytest.raises(KeyFileError, match=message):
        key_file.replace_key(text, "c", key)


# The example ------------------------------------------------------------------------------------


def test_the_example_lets_nobody_in_as_it_stands() -> None:
    contents = key_file.parse(EXAMPLE.read_text("utf-8"))
    assert contents.keys == ()
    assert {message for _, message in contents.problems} == {
        "the key must be 8 to 128 characters of A-Z a-z 0-9 _ - "
        "or sha256$ and 64 lower-case hexadecimal digits"
    }


def test_the_example_loads_once_its_placeholders_are_filled_in() -> None:
    text = EXAMPLE.read_text("utf-8").replace("<64 hex digits>", "0123456789abcdef" * 4)
    for name in ("production", "alice", "ops"):
        text = text.replace(f"<key of {name}>", f"sk-{name}-0123456789")
    contents = key_file.parse(text)
    assert (contents.problems, contents.warnings) == ((), ())
    assert [record.key_id for record in contents.keys] == ["production", "alice-laptop", "batch", "ops"]


def test_the_example_explains_every_option() -> None:
    text = EXAMPLE.read_text("utf-8")
    options = only_problem(f"a:{KEY}:colour=red").removeprefix("option 1 is none of ").split(", ")
    assert len(options) == 8
    assert [option for option in options if f"#   {option}=" not in text] == []
