"""The screen that a start prints: what it says, and that what it tells people to type works."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import corral
from corral import welcome
from corral.catalogue import Catalogue, Model
from corral.formats import key_file
from corral.settings import Settings
from tests.models import a_model
from tests.settings.desk import Desk

KEY = "sk-alice-0123456789abcdef"
DIGEST = key_file.hashed("sk-batch-0123456789abcdef")


def load(root: Path, keys: str | None = f"alice:{KEY}\n", **environ: str) -> Settings:
    data = root / "it's data"
    data.mkdir(exist_ok=True)
    if keys is not None:
        (data / "api_keys.txt").write_text(keys, encoding="utf-8", newline="")
    return Desk(root).load(environ={"DATA_DIR": str(data), "LOG_DIR": str(root / "logs"), **environ})


def catalogue(*models: Model) -> Catalogue:
    return Catalogue({model.name: model for model in models}, {}, ())


def screen(settings: Settings, *models: Model, port: int = 8000) -> str:
    return welcome.screen(settings, catalogue(*models), port, "no GPU found, CPU mode")


def test_the_screen_says_what_runs_where_and_what_to_type_next(tmp_path: Path) -> None:
    settings = load(tmp_path)
    settings = dataclasses.replace(
        settings, paths=dataclasses.replace(settings.paths, llama_server=Path("/opt/llama-server"))
    )
    text = screen(settings, a_model("vectors", embedding=True), a_model("org/phi", size_bytes=3 << 29))
    assert text.splitlines()[1:11] == [
        f"Corral {corral.__version__} is listening.",
        "",
        "  gateway   http://0.0.0.0:8000",
        "  health    http://0.0.0.0:8001/ping",
        "  models    vectors (1.0 MiB), org/phi (1.5 GiB)",
        "  hardware  no GPU found, CPU mode",
        "  engine    /opt/llama-server",
        f"  keys      {settings.access.keys_file}",
        f"  logs      {tmp_path / 'logs'}",
        "",
    ]
    assert '"model": "org/phi"' in text
    assert KEY not in text


def row(text: str, name: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
    return line.removeprefix(f"  {name}").strip()


def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path) -> None:
    settings = load(tmp_path, AUTH_ENABLED="off")
    settings = dataclasses.replace(settings, paths=dataclasses.replace(settings.paths, llama_server=None))
    text = screen(settings)
    assert row(text, "models") == f"none yet: copy a .gguf file into {settings.paths.models} and start again"
    assert row(text, "engine") == "none found: run `make engine`"
    assert row(text, "keys") == "not needed: AUTH_ENABLED is off"
    assert "curl" not in text


def test_a_herd_of_many_is_not_listed_in_full(tmp_path: Path) -> None:
    text = screen(load(tmp_path), *(a_model(f"m{number}") for number in range(15)))
    assert row(text, "models").endswith("m11 (1.0 MiB) and 3 more")


def test_only_an_embedding_model_is_no_one_to_say_hello_to(tmp_path: Path) -> None:
    assert "Try it" not in screen(load(tmp_path), a_model("vectors", embedding=True))


@pytest.mark.parametrize(
    ("host", "shown", "url"),
    [
        ("", "http://0.0.0.0:9000", "http://localhost:9000/"),
        ("0.0.0.0", "http://0.0.0.0:9000", "http://localhost:9000/"),
        ("::", "http://[::]:9000", "http://localhost:9000/"),
        ("192.0.2.7", "http://192.0.2.7:9000", "http://192.0.2.7:9000/"),
        ("::1", "http://[::1]:9000", "http://[::1]:9000/"),
    ],
)
def test_addresses_are_written_as_they_can_be_used(tmp_path: Path, host: str, shown: str, url: str) -> None:
    environ = {"GATEWAY_HOST": host} if host else {}
    text = screen(load(tmp_path, **environ), a_model("demo"), port=9000)
    assert row(text, "gateway") == shown
    assert f"curl -N {url}v1/chat/completions" in text


def test_one_port_for_both_is_shown_as_one(tmp_path: Path) -> None:
    text = screen(load(tmp_path, PORT_HEALTH="8000", GATEWAY_PORT="8000"), a_model("demo"))
    assert row(text, "health") == "http://0.0.0.0:8000/ping"


# The command -------------------------------------------------------------------------------------


def typed(text: str, tmp_path: Path, **environ: str) -> list[str]:
    """The words that curl gets when somebody pastes the command into a shell."""
    command = text[text.index("  curl") :]
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n')
    curl.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **environ}
    ran = subprocess.run(["sh", "-c", command], capture_output=True, env=environment, check=True)
    return ran.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize(
    "lines",
    [
        [f"alice:{KEY}"],
        ["# a comment: with a colon", "", f"alice:{KEY}"],
        [f"batch:{DIGEST}:priority=low", f"alice:{KEY}:rpm=60,models=*"],
        ["odd:short", "twice:sk-:x", f"wrong:{KEY}x:rpm=many", f"alice:{KEY}"],
        ["old:sk-old-0123456789:expires=2020-01-01", f"alice:{KEY}:expires=2999-01-01"],
        ["some:sk-some-0123456789:models=org/*", f"alice:{KEY}"],
        [f"  alice \t: {KEY} : rpm=60\r", "bob:sk-bob-0123456789"],
        [f"alice:{KEY}\r"],
        ["#first:sk-first-0123456789", f"alice:{KEY}", "bob:sk-bob-0123456789"],
    ],
    ids=["alone", "comment", "digest", "rejected", "expired", "few models", "spaces", "crlf", "disabled"],
)
def test_the_command_uses_the_first_key_that_can_be_used(tmp_path: Path, lines: Sequence[str]) -> None:
    text = screen(load(tmp_path, "\n".join(lines)), a_model("demo"))
    assert "\nTry it:\n" in text
    assert typed(text, tmp_path) == [
        "-N",
        "http://localhost:8000/v1/chat/completions",
        "-H",
        f"Authorization: Bearer {KEY}",
        "-d",
        '{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}',
    ]
    assert KEY not in text


@pytest.mark.parametrize(
    "keys",
    [None, "", f"batch:{DIGEST}\n", "old:sk-old-0123456789:expires=2020-01-01\n", "\udcff"],
    ids=["no file", "empty", "a digest alone", "expired alone", "no text"],
)
def test_without_such_a_key_the_command_asks_for_one(tmp_path: Path, keys: Any) -> None:
    settings = load(tmp_path, None)
    if keys is not None:
        settings.access.keys_file.write_bytes(keys.encode("utf-8", "surrogateescape"))
    text = screen(settings, a_model("demo"))
    assert "\nTry it, with a key of yours in CORRAL_KEY:\n" in text
    assert typed(text, tmp_path, CORRAL_KEY=KEY)[3] == f"Authorization: Bearer {KEY}"
    assert "sha256" not in text


def test_without_authentication_the_command_needs_no_key(tmp_path: Path) -> None:
    text = screen(load(tmp_path, AUTH_ENABLED="false"), a_model("demo"))
    assert typed(text, tmp_path)[:3] == ["-N", "http://localhost:8000/v1/chat/completions", "-d"]


def test_a_key_holds_through_its_last_day(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:{KEY}:expires=2026-01-31\n")
    assert welcome.line_of_a_key(file, date(2026, 1, 31)) == 1
    assert welcome.line_of_a_key(file, date(2026, 2, 1)) is None
