"""Looking through a directory of models: what is found, in which order, and what is wrong with the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral.drivers import model_files
from corral.formats import gguf
from tests.formats.gguf.crafting import SMALL


def put(path: Path, data: bytes = SMALL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found_below(root: Path) -> tuple[list[str], list[str]]:
    """Names relative to the root, and the warnings."""
    warnings: list[str] = []
    return [str(path.relative_to(root)) for path in model_files.find(root, warnings)], warnings


def test_files_are_found_nearest_first_then_by_name(tmp_path: Path) -> None:
    in_order = ["a.gguf", "a-b.gguf", "b.gguf", "A/UPPER.GGUF", "z/c.gguf", "z/deep/d.gguf"]
    for name in reversed(in_order):
        put(tmp_path / name)
    assert found_below(tmp_path) == (in_order, [])


def test_hidden_partial_and_other_files_are_no_models(tmp_path: Path) -> None:
    for name in (
        ".hidden.gguf",
        ".cache/x.gguf",
        "x.gguf.part",
        "x.gguf.tmp",
        "x.gguf.download",
        "notes.txt",
    ):
        put(tmp_path / name)
    assert found_below(tmp_path) == ([], [])


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert found_below(tmp_path / "nowhere") == ([], [])


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root / "real.gguf")
    elsewhere = put(tmp_path / "elsewhere" / "far.gguf")
    (root / "linked.gguf").symlink_to(elsewhere)
    (root / "more").symlink_to(elsewhere.parent)
    (elsewhere.parent / "back").symlink_to(root)
    (root / "self").symlink_to(root)
    assert found_below(root) == (["linked.gguf", "real.gguf", "more/far.gguf"], [])


def test_a_broken_link_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.gguf").symlink_to(tmp_path / "round.gguf")
    found, warnings = found_below(tmp_path)
    assert found == []
    assert [warning.partition(" is no file")[0] for warning in warnings] == [
        str(tmp_path / "gone.gguf"),
        str(tmp_path / "round.gguf"),
    ]


def test_what_lies_too_deep_is_a_warning(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath(*"12345678")
    put(deepest / "in.gguf")
    put(deepest / "9" / "out.gguf")
    found, warnings = found_below(tmp_path)
    assert found == ["1/2/3/4/5/6/7/8/in.gguf"]
    assert warnings == [f"{deepest / '9'} lies over 8 levels below {tmp_path}: left out"]


def test_the_number_of_files_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "FILES_MAX", 2)
    for name in ("a.gguf", "b.gguf"):
        put(tmp_path / name)
    assert found_below(tmp_path) == (["a.gguf", "b.gguf"], [])
    put(tmp_path / "c.gguf")
    found, warnings = found_below(tmp_path)
    assert found == ["a.gguf", "b.gguf"]
    assert warnings == [f"{tmp_path} holds more than 2 model files: the others are left out"]


def test_the_number_of_directories_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "DIRECTORIES_MAX", 2)
    for name in ("a/x.gguf", "b/y.gguf"):
        put(tmp_path / name)
    found, warnings = found_below(tmp_path)
    assert found == ["a/x.gguf"]
    assert warnings == [f"{tmp_path} holds more than 2 directories: the others are left out"]


def test_a_good_file_has_a_header_and_no_problem(tmp_path: Path) -> None:
    path = put(tmp_path / "x.gguf")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    file = model_files.look_at(path)
    assert (file.problem, file.size_bytes, file.modified_at) == (None, len(SMALL), 1_000_000_000)
    assert file.header is not None
    assert file.header.name == "Ünïcode"


def test_a_torn_file_says_what_is_missing(tmp_path: Path) -> None:
    file = model_files.look_at(put(tmp_path / "x.gguf", SMALL[:-20]))
    assert file.header is None
    assert file.problem is not None
    assert file.problem.startswith(f"{tmp_path / 'x.gguf'} can't be used: the file is cut short: 8 bytes")
    assert file.is_model


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    file = model_files.look_at(tmp_path / "x.gguf")
    assert (file.problem, file.size_bytes) == (
        f"{tmp_path / 'x.gguf'} can't be read: No such file or directory",
        0,
    )


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    file = model_files.look_at(tmp_path / "x.gguf")
    assert file.problem == f"{tmp_path / 'x.gguf'} can't be read: it is not a regular file"


def test_a_split_model_is_as_large_as_its_parts(tmp_path: Path) -> None:
    first, *others = (put(tmp_path / f"m-{number:05}-of-00003.gguf") for number in (1, 2, 3))
    assert model_files.shard_paths(first) == [first, *others]
    assert model_files.look_at(first).size_bytes == 3 * len(SMALL)
    assert model_files.look_at(first).problem is None
    assert model_files.look_at(first).is_model
    assert not any(model_files.look_at(other).is_model for other in others)


def test_a_split_model_with_a_missing_part_says_which(tmp_path: Path) -> None:
    first = put(tmp_path / "m-00001-of-00003.gguf")
    put(tmp_path / "m-00002-of-00003.gguf")
    file = model_files.look_at(first)
    missing = tmp_path / "m-00003-of-00003.gguf"
    assert (
        file.problem == f"a part of the model is missing: {missing} can't be read: No such file or directory"
    )
    assert file.size_bytes == 2 * len(SMALL)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("qwen-7b.Q4_K_M.gguf", "qwen-7b.Q4_K_M"),
        ("qwen-00001-of-00004.gguf", "qwen"),
        ("QWEN.GGUF", "QWEN"),
        ("qwen-1-of-4.gguf", "qwen-1-of-4"),
        ("qwen.bin", "qwen.bin"),
    ],
)
def test_the_stem_leaves_out_ending_and_shard(name: str, stem: str) -> None:
    assert model_files.stem(Path("/models") / name) == stem


def test_projectors_and_adapters_are_no_models(tmp_path: Path) -> None:
    def look(name: str, **metadata: str) -> model_files.ModelFile:
        tensor = gguf.NewTensor("t", (1,), "F32", bytes(4))
        keys = {key.replace("__", "."): value for key, value in metadata.items()}
        return model_files.look_at(put(tmp_path / name, gguf.write(keys, [tensor])))

    by_header = look("vision.gguf", general__architecture="clip")
    by_name = look("mmproj-x.gguf", general__architecture="llama")
    adapter = look("lora.gguf", general__type="adapter")
    assert [(file.is_model, file.is_projector) for file in (by_header, by_name, adapter)] == [
        (False, True),
        (False, True),
        (False, False),
    ]
