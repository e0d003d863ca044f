"""Footprints from real files: the model's own, and those that its flags name beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.fleet.footprints import measure_out
from corral.formats.demo_models import demo, demo_embed
from corral.policy import launch
from corral.policy.footprint import PredictedFootprint, UnknownFootprint
from tests.models import a_model


def footprint(path: Path, *flags: str, gpus: bool = False) -> PredictedFootprint | UnknownFootprint:
    model = a_model("demo", path=path, size_bytes=1234, flags=flags)
    argv = launch.command(model, llama_server="x", host="127.0.0.1", port=1, default_parallel=1)
    return measure_out(model, argv, {}, lambda key: None, gpus=gpus, multiplier=1.1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "demo.gguf").write_bytes(demo())
    (tmp_path / "draft.gguf").write_bytes(demo_embed())
    return tmp_path


def test_a_model_is_predicted_from_its_header_and_its_command_line(files: Path) -> None:
    small, large = (footprint(files / "demo.gguf", "-c", tokens) for tokens in ("4096", "65536"))
    assert isinstance(small, PredictedFootprint)
    assert isinstance(large, PredictedFootprint)
    assert small.host_bytes(0) < large.host_bytes(0)


@pytest.mark.parametrize("flag", ["-md", "--mmproj"])
def test_files_that_the_flags_name_are_counted_and_known_by(files: Path, flag: str) -> None:
    alone = footprint(files / "demo.gguf")
    both = footprint(files / "demo.gguf", flag, str(files / "draft.gguf"))
    assert isinstance(alone, PredictedFootprint)
    assert isinstance(both, PredictedFootprint)
    assert both.host_bytes(0) > alone.host_bytes(0)
    assert both.host_key(0).fingerprint != alone.host_key(0).fingerprint


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"nonsense" * 100])
def test_a_file_that_cannot_be_read_is_taken_for_its_size(files: Path, content: bytes | None) -> None:
    path = files / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    broken = footprint(path)
    assert isinstance(broken, UnknownFootprint)
    assert broken.host_bytes(0) == 1234


def test_a_draft_that_is_not_there_does_not_hide_the_model(files: Path) -> None:
    assert isinstance(footprint(files / "demo.gguf", "-md", "/nowhere.gguf"), UnknownFootprint)
