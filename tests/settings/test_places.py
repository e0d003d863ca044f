"""Where things are found when nobody says, in a file system made for each test."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from corral.errors import SettingsError
from corral.settings import find_llama_server, places
from tests.settings.desk import Desk


def test_data_lies_here_even_before_it_exists(desk: Desk) -> None:
    assert places.data_directory(desk.cwd) == desk.cwd / "data"


def test_without_data_here_the_first_volume_there_is_counts(desk: Desk) -> None:
    desk.volumes[1].mkdir()
    assert places.data_directory(desk.cwd) == desk.volumes[1]
    desk.volumes[0].mkdir()
    assert places.data_directory(desk.cwd) == desk.volumes[0]
    (desk.cwd / "data").mkdir()
    assert places.data_directory(desk.cwd) == desk.cwd / "data"


def test_a_volume_that_is_mounted_counts_before_one_that_the_image_brings(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for volume in desk.volumes:
        volume.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == desk.volumes[1])
    assert places.data_directory(desk.cwd) == desk.volumes[1]
    (desk.cwd / "data").mkdir()
    assert places.data_directory(desk.cwd) == desk.cwd / "data"


def test_models_mounted_into_the_image_count_if_only_they_are_there(desk: Desk) -> None:
    usual, mounted = desk.cwd / "data/models", desk.image / "models"
    assert places.models_directory(desk.cwd / "data") == usual
    mounted.mkdir(parents=True)
    assert places.models_directory(desk.cwd / "data") == usual
    (mounted / "m.gguf").touch()
    desk.file("data/models/.gitkeep")
    assert places.models_directory(desk.cwd / "data") == mounted
    desk.file("data/models/n.gguf")
    assert places.models_directory(desk.cwd / "data") == usual


def test_the_config_file_is_looked_for_here_then_in_data_then_in_the_image(desk: Desk) -> None:
    data = desk.cwd / "data"
    assert places.config_file(desk.cwd, data) is None
    desk.image.mkdir()
    (desk.image / "config.json").touch()
    assert places.config_file(desk.cwd, data) == desk.image / "config.json"
    desk.file("data/config.json")
    assert places.config_file(desk.cwd, data) == data / "config.json"
    desk.file("config.json")
    assert places.config_file(desk.cwd, data) == desk.cwd / "config.json"


def test_in_the_image_its_own_files_come_before_those_in_the_data(desk: Desk) -> None:
    """The entrypoint works in the image's folder, so what lies there is what lies here."""
    desk.cwd = desk.image
    desk.file("config.json", '{"api": {"port": 9001}}')
    desk.file(".env", "PORT_HEALTH=9002\n")
    [data, *_others] = desk.volumes
    data.mkdir()
    (data / "config.json").write_text('{"api": {"port": 9003}}')
    loaded = desk.load()
    assert loaded.paths.data == data
    assert loaded.paths.config_file == desk.image / "config.json"
    assert (loaded.server.port, loaded.server.health_port) == (9001, 9002)
    (desk.image / "config.json").unlink()
    assert desk.load().server.port == 9003


def test_the_runtime_directory_is_the_users_the_instances_and_the_ports(tmp_path: Path) -> None:
    name = f"corral-{os.getuid()}-box-8000"
    assert places.runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)}, "box", 8000) == tmp_path / name
    temporary = Path(tempfile.gettempdir()) / name
    assert places.runtime_directory({}, "box", 8000) == temporary
    assert places.runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path / "gone")}, "box", 8000) == temporary
    assert places.runtime_directory({"XDG_RUNTIME_DIR": "relative"}, "box", 8000) == temporary


def test_two_gateways_of_one_user_write_to_two_places(desk: Desk) -> None:
    first, second = (desk.load(environ={"GATEWAY_PORT": port}).paths.runtime for port in ("9000", "9001"))
    assert first != second
    assert desk.load(environ={"GATEWAY_PORT": "9001", "RUNTIME_DIR": "/run/x"}).paths.runtime == Path(
        "/run/x"
    )


def test_the_cache_follows_the_xdg_specification() -> None:
    assert places.cache_directory({"HOME": "/users/me"}) == Path("/users/me/.cache/corral")
    assert places.cache_directory({"HOME": "/users/me", "XDG_CACHE_HOME": "/c"}) == Path("/c/corral")
    assert places.cache_directory({"HOME": "/users/me", "XDG_CACHE_HOME": "c"}) == Path(
        "/users/me/.cache/corral"
    )


def test_a_home_that_is_no_absolute_path_is_the_temporary_directory() -> None:
    assert places.home({"HOME": "nowhere"}) == Path(tempfile.gettempdir())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/x", "/x"),
        ("x/y", "/base/x/y"),
        ("./x", "/base/x"),
        ("~", "/users/me"),
        ("~/x", "/users/me/x"),
        ("~you/x", "/base/~you/x"),
        ("x/~", "/base/x/~"),
    ],
)
def test_paths_become_absolute(path: str, expected: str) -> None:
    assert places.absolute(Path(path), Path("/base"), Path("/users/me")) == Path(expected)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("box-1", "box-1"),
        ("my box.local", "mybox.local"),
        ("-_-", "localhost"),
        ("", "localhost"),
        ("b" * 300, "b" * 100),
    ],
)
def test_a_host_name_becomes_part_of_a_file_name(
    monkeypatch: pytest.MonkeyPatch, name: str, kept: str
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: name)
    assert places.host_name() == kept


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("box", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, is_loopback: bool) -> None:
    assert places.is_loopback(host) is is_loopback


def test_a_name_too_long_for_the_file_system_is_no_file() -> None:
    assert not places.is_file(Path("a" * 5000))


def test_llama_server_is_looked_for_in_path_then_in_the_image_then_among_the_builds(desk: Desk) -> None:
    cache = desk.home / "cache"
    search_path = f"{desk.home}/bin:{desk.home}/sbin"
    assert find_llama_server(search_path, cache) is None

    old = desk.program(cache / "engine-0ld-cpu/llama-server")
    new = desk.program(cache / "engine-new-cpu/llama-server")
    os.utime(old, (1000, 1000))
    os.utime(new, (2000, 2000))
    assert find_llama_server(search_path, cache) == new

    cuda = desk.program(cache / "engine-0ld-cuda/llama-server")
    os.utime(cuda, (500, 500))
    assert find_llama_server(search_path, cache) == cuda

    in_image = desk.program(desk.image / "llama-server")
    assert find_llama_server(search_path, cache) == in_image

    on_path = desk.program(desk.home / "sbin/llama-server")
    assert find_llama_server(search_path, cache) == on_path


def test_what_cannot_be_run_is_not_found(desk: Desk) -> None:
    cache = desk.home / "cache"
    desk.program(cache / "engine-new-cpu/llama-server").chmod(0o644)
    (cache / "engine-empty-cpu").mkdir()
    desk.program(cache / "other/llama-server")
    assert find_llama_server("", cache) is None


def test_a_llama_server_that_is_named_must_be_a_program(desk: Desk) -> None:
    program = desk.program(desk.home / "llama-server")
    assert places.check_llama_server(program, "HERE") == program


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("missing", "which does not exist; it must be a llama-server to run"),
        ("directory", "a directory; it must be the llama-server program itself"),
        ("data", "which is not executable; chmod +x it, or name another one"),
    ],
)
def test_a_llama_server_that_cannot_be_run_is_told_with_its_path(desk: Desk, name: str, what: str) -> None:
    (desk.home / "directory").mkdir()
    (desk.home / "data").touch()
    with pytest.raises(SettingsError) as caught:
        places.check_llama_server(desk.home / name, "HERE")
    assert str(caught.value) == f"HERE is {desk.home / name}, {what}"
