from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

import keys
from corral.drivers import clock
from corral.formats import demo_models, key_file
from corral.formats.key_file import KeyRecord, Role

SCRIPT = Path(__file__).parents[1] / "scripts" / "keys.py"
KEY = "sk-test-abc123def456"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default keys file of a place without any configuration."""
    for name in (
        "AUTH_KEYS_FILE",
        "DATA_DIR",
        "CONFIG_PATH",
        "API_KEY",
        "GATEWAY_HOST",
        "GATEWAY_PORT",
        "PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "api_keys.txt"


def records(path: Path) -> dict[str, KeyRecord]:
    contents = key_file.parse(path.read_text())
    assert contents.problems == ()
    return {record.key_id: record for record in contents.keys}


def printed_key(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_generate_prints_the_key_alone_and_writes_its_line(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(["generate", "alice", "rpm=60,role=admin"]) == 0
    key = printed_key(capsys)
    record = records(path)["alice"]
    assert record.digest == key_file.digest_of(key)
    assert (record.requests_per_minute, record.role) == (60, Role.ADMIN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_generate_tells_a_person_how_to_use_the_key(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "8123")
    keys.main(["generate", "alice"])
    out, err = capsys.readouterr()
    assert err == (
        f"The key of alice, in {path}. It is shown only now:\n"
        f'  curl http://localhost:8123/v1/models -H "Authorization: Bearer {out.strip()}"\n'
    )


def test_what_a_person_is_told_is_where_the_gateway_listens_and_how(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = path.parent.parent / "tls.crt"
    certificate.touch()
    monkeypatch.setenv("TLS_CERT_FILE", str(certificate))
    monkeypatch.setenv("GATEWAY_HOST", "192.0.2.7")
    keys.main(["generate", "alice"])
    assert "  curl https://192.0.2.7:8000/v1/models " in capsys.readouterr().err


@pytest.fixture
def demo(path: Path) -> Path:
    """A model that one can say hello to."""
    models = path.parent / "models"
    models.mkdir(parents=True)
    (models / "demo.gguf").write_bytes(demo_models.demo())
    return models


@pytest.mark.parametrize(
    ("published", "url"),
    [
        ("0.0.0.0:9000", "http://localhost:9000"),
        ("[::]:9000", "http://localhost:9000"),
        (":::9000", "http://localhost:9000"),
        (":9000", "http://localhost:9000"),
        ("::1:9000", "http://[::1]:9000"),
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("192.0.2.7:80", "http://192.0.2.7:80"),
    ],
)
def test_a_first_key_is_shown_with_a_chat_at_the_address_that_a_container_is_published_on(
    demo: Path, capsys: pytest.CaptureFixture[str], published: str, url: str
) -> None:
    assert keys.main(["ensure", "--at", published]) == 0
    out, err = capsys.readouterr()
    command = shlex.split(err.partition("curl")[2].replace("\\\n", ""))
    assert command[:2] == ["-N", f"{url}/v1/chat/completions"]
    assert command[3] == f"Authorization: Bearer {out.strip()}"
    assert json.loads(command[5])["model"] == "demo"


def test_without_a_model_a_first_key_is_shown_with_a_question_for_models(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(["ensure", "--at", "0.0.0.0:9000"]) == 0
    assert "  curl http://localhost:9000/v1/models -H" in capsys.readouterr().err


@pytest.mark.usefixtures("demo")
def test_a_key_that_is_there_is_not_shown_but_the_chat_is(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(f"a:{KEY}\n")
    assert keys.main(["ensure", "--at", "0.0.0.0:9000"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "curl -N http://localhost:9000/v1/chat/completions" in err
    assert "Bearer $CORRAL_KEY" in err
    assert KEY not in err


@pytest.mark.parametrize("published", ["9000", "", "host:", "host:many", "0.0.0.0:0"])
def test_an_address_is_a_host_and_a_port(
    path: Path, capsys: pytest.CaptureFixture[str], published: str
) -> None:
    with pytest.raises(SystemExit):
        keys.main(["ensure", "--at", published])
    assert "HOST:PORT" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.usefixtures("demo")
def test_where_no_key_is_needed_none_is_made_and_none_is_in_the_chat(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_ENABLED", "off")
    assert keys.main(["ensure", "--at", "0.0.0.0:9000"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.partition("\n")[0]) == ("", "Try it:")
    assert "Authorization" not in err
    assert not path.exists()


def test_a_key_of_the_environment_is_in_force_and_no_first_one_is_made(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", KEY)
    assert keys.main(["ensure"]) == 0
    assert capsys.readouterr() == ("", "")
    assert not path.exists()


def test_a_hashed_key_is_not_in_the_file_but_opens_all_the_same(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(["generate", "alice", "--hashed"]) == 0
    key = printed_key(capsys)
    assert key not in path.read_text()
    assert records(path)["alice"].digest == key_file.digest_of(key)


@pytest.mark.parametrize("place", ["before", "after"])
def test_another_file_may_be_named_before_the_command_or_after_it(
    path: Path, tmp_path: Path, place: str
) -> None:
    other = tmp_path / "other.txt"
    file, command = ["--file", str(other)], ["generate", "alice"]
    assert keys.main(file + command if place == "before" else command + file) == 0
    assert list(records(other)) == ["alice"]
    assert not path.exists()


def test_the_file_of_the_settings_is_the_default(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_KEYS_FILE", str(tmp_path / "set.txt"))
    assert keys.main(["generate", "alice"]) == 0
    assert list(records(tmp_path / "set.txt")) == ["alice"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["generate", "a b"], "the key_id must be", id="a bad name"),
        pytest.param(["generate", "env"], "reserved", id="a reserved name"),
        pytest.param(["generate", "taken"], "taken is there already", id="a name in use"),
        pytest.param(["generate", "new", "rpm=x"], "the option rpm must be", id="a bad option"),
        pytest.param(["generate", "new", "colour=red"], "option 1 is none of rpm", id="an unknown option"),
        pytest.param(["remove", "nobody"], "there is no key_id nobody", id="nobody to remove"),
        pytest.param(["rotate", "nobody"], "the key_id nobody stands nowhere", id="nobody to rotate"),
    ],
)
def test_what_can_not_be_done_is_refused_and_changes_nothing(
    path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_text(f"taken:{KEY}\n")
    assert keys.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"keys.py: {path}: ")
    assert message in err
    assert path.read_text() == f"taken:{KEY}\n"


def test_remove_takes_the_key_away_and_leaves_the_comments(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(f"# people\na:{KEY}\nb:{KEY}-2\n")
    assert keys.main(["remove", "a"]) == 0
    assert path.read_text() == f"# people\nb:{KEY}-2\n"


def test_rotate_puts_a_new_key_in_the_place_of_the_old(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_text(f"# people\na:{KEY}:rpm=5\n")
    assert keys.main(["rotate", "a"]) == 0
    assert path.read_text() == f"# people\na:{printed_key(capsys)}:rpm=5\n"


def test_list_shows_what_keys_may_do_and_no_key(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "today", lambda: date(2027, 2, 1))
    path.parent.mkdir()
    path.write_text(
        f"a:{KEY}\nb:{KEY}-2:0,priority=low,models=x*|y,tokens_per_month=5,expires=2027-01-31,role=admin\n{KEY}\n"
    )
    assert keys.main(["list"]) == 0
    out, err = capsys.readouterr()
    digests = [key_file.digest_of(key).hex()[:8] for key in (KEY, f"{KEY}-2")]
    assert [line.split() for line in out.splitlines()] == [
        ["KEY_ID", "SHA256", "ROLE", "STATE", "RPM", "PRIORITY", "TOKENS/MONTH", "EXPIRES", "MODELS"],
        ["a", digests[0], "user", "active", "default", "any", "unlimited", "never", "*"],
        ["b", digests[1], "admin", "expired", "unlimited", "low", "5", "2027-01-31", "x*|y"],
    ]
    assert err == f"{path}, line 3 rejected: a line must read key_id:api_key or key_id:api_key:options.\n"
    assert KEY not in out + err


@pytest.mark.parametrize("text", [None, "", "# nobody\n"], ids=["no file", "empty", "comments"])
def test_list_says_that_there_are_no_keys(
    path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        path.parent.mkdir()
        path.write_text(text)
    assert keys.main(["list"]) == 0
    assert capsys.readouterr() == ("No API keys found.\n", "")


def test_ensure_makes_a_first_admin_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main(["ensure"]) == 0
    key = printed_key(capsys)
    assert records(path) == {"first": KeyRecord("first", key_file.digest_of(key), role=Role.ADMIN)}
    before = path.read_text()
    assert keys.main(["ensure"]) == 0
    assert capsys.readouterr() == ("", "")
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "minted"),
    [
        pytest.param("# nobody\n", True, id="comments"),
        pytest.param("broken\n", True, id="a rejected line"),
        pytest.param(f"a:{KEY}:expires=2027-01-31\n", True, id="an expired key"),
        pytest.param(f"a:{KEY}:expires=2027-02-01\n", False, id="a key on its last day"),
        pytest.param(f"a:{KEY}\n", False, id="a key"),
    ],
)
def test_ensure_asks_for_a_key_that_is_in_force(
    path: Path, text: str, minted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "today", lambda: date(2027, 2, 1))
    path.parent.mkdir()
    path.write_text(text)
    assert keys.main(["ensure"]) == 0
    assert path.read_text().startswith(text)
    assert (len(path.read_text()) > len(text)) is minted


def test_a_file_that_can_not_be_read_is_an_error_and_not_an_empty_one(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff")
    assert keys.main(["ensure"]) == 1
    assert capsys.readouterr() == ("", f"keys.py: {path}: it is not UTF-8 text (at byte 0)\n")
    assert path.read_bytes() == b"\xff"
    path.unlink()
    path.mkdir()
    assert keys.main(["list"]) == 1
    assert "Is a directory" in capsys.readouterr().err


def test_a_setting_that_is_wrong_is_named(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "many")
    assert keys.main(["list"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("keys.py: ")
    assert "GATEWAY_PORT" in err


def test_the_script_runs_by_itself_and_its_output_is_the_key(path: Path) -> None:
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "generate", "alice"],
        cwd=path.parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert records(path)["alice"].digest == key_file.digest_of(done.stdout.strip())


def test_scripts_that_run_at_the_same_time_lose_no_key(path: Path) -> None:
    environment = {"PATH": os.environ["PATH"]}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "generate", f"key-{number}"],
            cwd=path.parent.parent,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(4)
    ]
    assert [process.wait(timeout=60) for process in running] == [0] * 4
    assert sorted(records(path)) == [f"key-{number}" for number in range(4)]
