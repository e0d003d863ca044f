"""The two files as text: what they say, and how a broken one is told without telling its secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corral.errors import SettingsError
from corral.settings.sources import CONFIG_MAX_BYTES, DOTENV_MAX_BYTES, read_config, read_dotenv


def refusal_of_dotenv(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_dotenv(path)
    return str(caught.value)


def refusal_of_config(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("NAME=value", "value"),
        ("  NAME = value  ", "value"),
        ("export NAME=value", "value"),
        ("export\tNAME=value", "value"),
        ("NAME=value\r", "value"),
        ("NAME=", ""),
        ("NAME=two words", "two words"),
        ("NAME=value # comment", "value"),
        ("NAME=value#kept", "value#kept"),
        ("NAME=# comment", ""),
        ("NAME=a=b", "a=b"),
        ("NAME='value # kept' # comment", "value # kept"),
        (r"NAME='a\nb'", r"a\nb"),
        (r'NAME="a\nb\"c\\d\$e\w"', 'a\nb"c\\d$e\\w'),
        ('NAME=""', ""),
        ("NAME=it's", "it's"),
        ("NAME=ü", "ü"),
    ],
)
def test_an_assignment_is_read(tmp_path: Path, line: str, value: str) -> None:
    file = tmp_path / ".env"
    file.write_bytes(line.encode())
    assert read_dotenv(file) == {"NAME": value}


def test_comments_and_empty_lines_are_passed_over_and_the_last_assignment_counts(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"\xef\xbb\xbf# comment\r\n\r\nA=1\n   # B=2\nA=3\nC=4")
    assert read_dotenv(file) == {"A": "3", "C": "4"}


@pytest.mark.parametrize(
    "line",
    [
        "sk-secret",
        "sk secret=1",
        "1A=sk-secret",
        "=sk-secret",
        "A='sk-secret",
        'A="sk-secret',
        'A="sk"secret',
        "A=sk-\0",
    ],
)
def test_a_broken_line_is_told_by_its_number_and_never_by_what_it_says(tmp_path: Path, line: str) -> None:
    file = tmp_path / ".env"
    file.write_text(f"GOOD=1\n\n{line}\n")
    message = refusal_of_dotenv(file)
    assert message.startswith(f"{file} line 3 ")
    assert "NAME=value" in message
    assert "sk" not in message.removeprefix(str(file))


def test_no_dotenv_and_a_directory_of_that_name_are_both_nothing(tmp_path: Path) -> None:
    assert read_dotenv(tmp_path / ".env") == {}
    (tmp_path / ".env").mkdir()
    assert read_dotenv(tmp_path / ".env") == {}


def test_a_dotenv_has_a_size_limit(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("#" * DOTENV_MAX_BYTES)
    assert read_dotenv(file) == {}
    file.write_text("#" * (DOTENV_MAX_BYTES + 1))
    assert refusal_of_dotenv(file) == f"{file} is larger than 65536 bytes; a file of settings must be smaller"


def test_a_dotenv_is_utf_8(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"A=1\nB=\xff")
    assert refusal_of_dotenv(file) == f"{file} is not UTF-8 text at byte 6"


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("{}", {}),
        ('{"a": 1}\n\n', {"a": 1}),
        ('// first\n{"a": 1} // last', {"a": 1}),
        ('{"a": [1, // one\n 2]}', {"a": [1, 2]}),
        (
            '{"url": "http://x//y", "b": "\\"// no comment"} // "yes"',
            {"url": "http://x//y", "b": '"// no comment'},
        ),
        ('{"_note": 1, "a": {"_b": 2, "c": [{"_d": 3}]}}', {"a": {"c": [{}]}}),
        ("\ufeff{}", {}),
    ],
)
def test_json_with_comments_is_read(tmp_path: Path, text: str, config: dict[str, Any]) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    assert read_config(file) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', "FILE line 2 column 6: Expecting ':' delimiter"),
        ('{"a": 1, // why\n // and so on\n   }', "FILE line"),
        ('// 12345\n{"a": // x\n  tru}', "FILE line 3 column 3: Expecting value"),
        ("", "FILE line 1 column 1: Expecting value"),
        ('{"a": "', "FILE line 1 column 7: Unterminated string starting at"),
        ("[]", "FILE must hold one JSON object, {…}"),
        ('{"a": NaN}', "FILE holds NaN; a number must be finite"),
        ('{"a": -Infinity}', "FILE holds -Infinity; a number must be finite"),
        ('{"a": {"b": 1, "b": 2}}', 'FILE has the key "b" twice in one object; keep one'),
        ('{"a": ' + "9" * 5000 + "}", "FILE holds a number too long or brackets too deep to read"),
        ("[" * 200_000, "FILE holds a number too long or brackets too deep to read"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_broken_json_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    assert refusal_of_config(file).startswith(message.replace("FILE", str(file)))


def test_a_config_file_has_a_size_limit(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}" + " " * (CONFIG_MAX_BYTES - 2))
    assert read_config(file) == {}
    file.write_text("{}" + " " * (CONFIG_MAX_BYTES - 1))
    assert refusal_of_config(file).startswith(f"{file} is larger than 1048576 bytes")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert refusal_of_config(tmp_path) == f"{tmp_path} can't be read: Is a directory"
    missing = tmp_path / "missing.json"
    assert refusal_of_config(missing) == f"{missing} can't be read: No such file or directory"


def test_a_quote_that_is_never_closed_costs_linear_time(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a": "' + '\\"' * 500_000)
    # Tried again from every quote, this would run for hours.
    assert "Unterminated string" in refusal_of_config(file)
