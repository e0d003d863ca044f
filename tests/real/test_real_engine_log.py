"""The real llama-server's own words about memory, when it has enough and when it has not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from corral.formats.engine_log import ran_out_of_memory
from tests.support import free_port

# Enough for a llama-server with a demo model, by far, and too little for what is asked of it below.
ADDRESS_SPACE_KIB = 900_000
DEADLINE_S = 30.0


def command(engine: Path, model: Path, *flags: str) -> list[str]:
    fixed = ["--host", "127.0.0.1", "--port", str(free_port()), "--threads", "1", "-np", "1", "-fit", "off"]
    return [str(engine), "--model", str(model), *fixed, *flags]


def death(argv: list[str]) -> tuple[list[str], int]:
    """What it said, and its exit code, in a process that can't have more than a limited address space."""
    limited = ["sh", "-c", f'ulimit -v {ADDRESS_SPACE_KIB}; exec "$@"', "sh", *argv]
    ended = subprocess.run(limited, capture_output=True, text=True, timeout=DEADLINE_S)
    return ended.stderr.splitlines(), ended.returncode


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("-c", "4000000", "-ctk", "f32", "-ctv", "f32", "-b", "32"),
            "failed to allocate buffer for kv cache",
        ),
        (("-c", "40000000"), "bad_alloc"),
    ],
    ids=["too-long-a-context", "far-too-long-a-context"],
)
def test_a_context_beyond_the_memory_is_a_death_for_want_of_it(
    llama_server: Path, demo_files: Path, flags: tuple[str, ...], words: str
) -> None:
    lines, exit_code = death(command(llama_server, demo_files / "demo.gguf", *flags))
    assert words in "\n".join(lines)
    assert ran_out_of_memory(lines, exit_code)


def test_a_file_that_finds_no_room_to_be_mapped_is_one_too(
    llama_server: Path, demo_files: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.gguf"
    large.write_bytes((demo_files / "demo.gguf").read_bytes())
    with large.open("r+b") as file:
        file.truncate(ADDRESS_SPACE_KIB * 1024)  # a hole, which takes no room on the disk
    lines, exit_code = death(command(llama_server, large))
    assert "mmap failed" in "\n".join(lines)
    assert ran_out_of_memory(lines, exit_code)


def test_a_file_that_is_not_there_is_none(llama_server: Path, tmp_path: Path) -> None:
    lines, exit_code = death(command(llama_server, tmp_path / "missing.gguf"))
    assert exit_code == 1
    assert not ran_out_of_memory(lines, exit_code)
