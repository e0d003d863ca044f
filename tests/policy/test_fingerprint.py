"""Which starts are the same to the memory: the key under which a measurement is found again."""

from __future__ import annotations

import itertools
import re

import pytest

from corral.policy.fingerprint import FileFacts, fingerprint, flags_key

MODEL = FileFacts("qwen.gguf", 4_000_000_000, 1_700_000_000_000_000_001)
PROJECTOR = FileFacts("mmproj-qwen.gguf", 600_000_000, 1_700_000_000_000_000_001)
ARGV = (
    *("/opt/llama-server", "--model", "/models/qwen.gguf", "--alias", "qwen", "--host", "127.0.0.1"),
    *("--port", "8085", "-c", "4096", "-ngl", "99", "--metrics", "-fit", "off", "--temp", "0.7"),
)


def with_word(old: str, new: str) -> tuple[str, ...]:
    assert old in ARGV
    return tuple(new if word == old else word for word in ARGV)


def test_both_keys_are_short_plain_texts_and_the_same_in_every_run() -> None:
    assert fingerprint([MODEL]) == "b32b13ebaeb8798369cb5826bb05d57ab05df9db522065523f111267b9b30cda"
    assert re.fullmatch("[0-9a-f]{64}", flags_key(ARGV))


def test_the_order_in_which_files_are_named_does_not_matter() -> None:
    assert fingerprint([MODEL, PROJECTOR]) == fingerprint([PROJECTOR, MODEL])


def test_another_name_size_or_time_of_change_is_another_file() -> None:
    sets = [
        [],
        [MODEL],
        [MODEL, PROJECTOR],
        [MODEL._replace(name="qwen2.gguf")],
        [MODEL._replace(size_bytes=4_000_000_001)],
        [MODEL._replace(modified_ns=MODEL.modified_ns + 1)],
    ]
    assert len({fingerprint(files) for files in sets}) == len(sets)


def test_a_name_that_is_no_text_is_a_name_all_the_same() -> None:
    odd = [FileFacts(name, 1, 1) for name in ("m\udcff.gguf", "m\udcfe.gguf", 'm".gguf', "模型.gguf")]
    assert len({fingerprint([file]) for file in odd}) == 4


@pytest.mark.parametrize(
    "argv",
    [
        with_word("/opt/llama-server", "/app/llama-server"),
        with_word("/models/qwen.gguf", "/data/qwen.gguf"),
        with_word("--model", "-m"),
        with_word("qwen", "other"),
        with_word("127.0.0.1", "::1"),
        with_word("8085", "8086"),
        with_word("0.7", "1.0"),
        (*ARGV, "-lv", "4"),
        (*ARGV, "--log-prefix"),
        (*ARGV, "--chat_template", "chatml"),
        (*ARGV, "--port"),
        tuple(word for word in ARGV if word != "--metrics"),
    ],
    ids=lambda argv: " ".join(argv)[-30:],
)
def test_what_does_not_change_the_memory_does_not_change_the_key(argv: tuple[str, ...]) -> None:
    assert flags_key(argv) == flags_key(ARGV)


@pytest.mark.parametrize(
    "argv",
    [
        with_word("4096", "8192"),
        with_word("99", "12"),
        with_word("off", "on"),
        (*ARGV, "-ctk", "q8_0"),
        (*ARGV, "--mmproj", "/models/mmproj.gguf"),
        (*ARGV, "--no-host"),
        (*ARGV, "--flag-of-tomorrow", "1"),
        (*ARGV, "--flag-of-tomorrow", "2"),
    ],
    ids=lambda argv: " ".join(argv)[-30:],
)
def test_what_may_change_the_memory_changes_the_key(argv: tuple[str, ...]) -> None:
    assert flags_key(argv) != flags_key(ARGV)


def test_words_are_not_run_together() -> None:
    lines = [("x", "-a1", *words) for words in (["-b", "c"], ["-bc"], ["-b c"], ["-b", "", "c"])]
    assert all(flags_key(one) != flags_key(two) for one, two in itertools.combinations(lines, 2))


def test_both_spellings_of_a_flag_are_one() -> None:
    assert flags_key(("x", "--ctx_size", "4096")) == flags_key(("x", "--ctx-size", "4096"))
