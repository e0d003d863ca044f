"""The models that files make: their names, what belongs to them, and how settings and disk are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corral import settings
from corral.catalogue import Catalogue
from corral.drivers import model_store
from corral.drivers.model_store import FoundModel
from corral.formats import gguf
from corral.formats.gguf import NewTensor

CHAT: dict[str, Any] = {"general.architecture": "llama", "llama.context_length": 8192}
PROJECTOR = {"general.architecture": "clip", "general.type": "mmproj"}


def put(path: Path, metadata: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor = NewTensor("t", (8,), "F32", bytes(32))
    path.write_bytes(gguf.write(CHAT if metadata is None else metadata, [tensor]))
    return path


def scanned(root: Path) -> dict[str, FoundModel]:
    found = model_store.scan(root)
    assert not found.warnings
    return {model.name: model for model in found.models}


def projectors(root: Path) -> tuple[dict[str, str | None], list[str]]:
    """Which model got which projector, and the warnings."""
    found = model_store.scan(root)
    attached = {model.name: model.mmproj.name if model.mmproj else None for model in found.models}
    return attached, list(found.warnings)


def load(root: Path, config: str | None = None, **environ: str) -> Catalogue:
    """The catalogue of a data directory, with this config file."""
    if config is not None:
        (root / "config.json").write_text(config)
    environ = {"DATA_DIR": str(root), "HOME": str(root), "PATH": ""} | environ
    return model_store.catalogue(settings.load(environ, cwd=root))


# Scanning -----------------------------------------------------------------------------------------


def test_every_file_becomes_a_model_named_after_it(tmp_path: Path) -> None:
    put(tmp_path / "qwen-7b.Q4_K_M.gguf")
    put(tmp_path / "vendor" / "My Model (v2).gguf")
    assert list(scanned(tmp_path)) == ["qwen-7b.Q4_K_M", "My-Model--v2-"]


def test_a_model_tells_what_its_header_says(tmp_path: Path) -> None:
    path = put(tmp_path / "x.gguf", CHAT | {"llama.pooling_type": 3})
    found = scanned(tmp_path)["x"]
    assert (found.path, found.size_bytes, found.problem) == (path, path.stat().st_size, None)
    assert (found.architecture, found.context_length) == ("llama", 8192)
    assert (found.embedding, found.pooling) == (True, "last")


def test_a_bert_without_pooling_embeds_too(tmp_path: Path) -> None:
    put(tmp_path / "x.gguf", {"general.architecture": "nomic-bert", "nomic-bert.pooling_type": 0})
    found = scanned(tmp_path)["x"]
    assert (found.embedding, found.pooling) == (True, None)


def test_shards_make_one_model(tmp_path: Path) -> None:
    for number in (1, 2):
        split = {"split.no": number - 1, "split.count": 2}
        put(tmp_path / f"big-{number:05}-of-00002.gguf", CHAT | split)
    [(name, found)] = scanned(tmp_path).items()
    assert name == "big"
    assert found.path.name == "big-00001-of-00002.gguf"
    assert found.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_adapters_vocabularies_and_matrices_are_no_models(tmp_path: Path) -> None:
    put(tmp_path / "lora.gguf", CHAT | {"general.type": "adapter"})
    put(tmp_path / "matrix.gguf", {"general.type": "imatrix"})
    (tmp_path / "vocabulary.gguf").write_bytes(gguf.write(CHAT, []))
    assert scanned(tmp_path) == {}


def test_a_file_that_cannot_be_read_is_listed_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"nonsense")
    found = scanned(tmp_path)["broken"]
    assert found.problem == (
        f"{tmp_path / 'broken.gguf'} can't be used: not a GGUF file: it begins with b'nons' (at byte 0)"
    )
    assert (found.size_bytes, found.embedding, found.context_length) == (8, False, None)


def test_the_second_file_of_a_name_is_called_by_its_directory(tmp_path: Path) -> None:
    for place in ("b/x.gguf", "x.gguf", "a/x.gguf", "a/b/x.gguf"):
        put(tmp_path / place)
    assert {name: str(model.path.relative_to(tmp_path)) for name, model in scanned(tmp_path).items()} == {
        "x": "x.gguf",
        "a/x": "a/x.gguf",
        "b/x": "b/x.gguf",
        "a/b/x": "a/b/x.gguf",
    }


def test_two_files_that_no_directory_tells_apart_are_a_warning(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a b.gguf"), put(tmp_path / "a-b.gguf")
    found = model_store.scan(tmp_path)
    assert [model.path for model in found.models] == [first]
    assert found.warnings == (f"{second} would be called a-b like {first}: left out. Rename one",)


def test_a_projector_belongs_to_the_only_model_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "gemma" / "gemma-3-4b.gguf")
    put(tmp_path / "gemma" / "mmproj-model-f16.gguf", PROJECTOR)
    put(tmp_path / "qwen" / "qwen-vl.gguf")
    put(tmp_path / "qwen" / "vision-tower.gguf", PROJECTOR)
    put(tmp_path / "plain.gguf")
    assert projectors(tmp_path) == (
        {"plain": None, "gemma-3-4b": "mmproj-model-f16.gguf", "qwen-vl": "vision-tower.gguf"},
        [],
    )


def test_among_several_models_a_projector_belongs_to_those_it_is_named_after(tmp_path: Path) -> None:
    for name in ("gemma-3-4b-it-Q4_K_M", "gemma-3-4b-it-Q8_0", "qwen2.5-vl-7b-Q4_K_M", "llama-3b"):
        put(tmp_path / f"{name}.gguf")
    put(tmp_path / "mmproj-gemma-3-4b-it-f16.gguf", PROJECTOR)
    put(tmp_path / "Qwen2.5-VL-7B-mmproj-BF16.gguf", PROJECTOR)
    assert projectors(tmp_path) == (
        {
            "gemma-3-4b-it-Q4_K_M": "mmproj-gemma-3-4b-it-f16.gguf",
            "gemma-3-4b-it-Q8_0": "mmproj-gemma-3-4b-it-f16.gguf",
            "llama-3b": None,
            "qwen2.5-vl-7b-Q4_K_M": "Qwen2.5-VL-7B-mmproj-BF16.gguf",
        },
        [],
    )


@pytest.mark.parametrize(
    "others",
    [["a.gguf", "b.gguf"], ["a.gguf", "mmproj-f32.gguf"]],
    ids=["two-models", "two-projectors"],
)
def test_a_projector_that_could_belong_to_several_is_attached_to_none(
    tmp_path: Path, others: list[str]
) -> None:
    put(tmp_path / "mmproj-f16.gguf", PROJECTOR)
    for name in others:
        put(tmp_path / name, PROJECTOR if "mmproj" in name else None)
    attached, warnings = projectors(tmp_path)
    assert set(attached.values()) == {None}
    assert warnings[0].startswith(f"{tmp_path / 'mmproj-f16.gguf'} fits none or several of the models")


def test_scanning_a_missing_directory_finds_nothing(tmp_path: Path) -> None:
    assert model_store.scan(tmp_path / "nowhere") == ((), ())


# Inspecting one file ------------------------------------------------------------------------------


def test_a_named_file_is_inspected_with_its_projector(tmp_path: Path) -> None:
    path = put(tmp_path / "gemma.gguf")
    projector = put(tmp_path / "mmproj-gemma.gguf", PROJECTOR)
    found = model_store.inspect(path)
    assert (found.name, found.mmproj, found.problem) == ("gemma", projector, None)


def test_a_named_file_that_is_missing_or_no_model_has_a_problem(tmp_path: Path) -> None:
    missing = model_store.inspect(tmp_path / "gone" / "x.gguf")
    assert missing.problem == f"{tmp_path / 'gone' / 'x.gguf'} can't be read: No such file or directory"
    projector = model_store.inspect(put(tmp_path / "mmproj.gguf", PROJECTOR))
    assert projector.problem == f"{tmp_path / 'mmproj.gguf'} is a projector file, not a model"


# The catalogue ------------------------------------------------------------------------------------


def test_without_a_config_file_the_disk_is_the_catalogue(tmp_path: Path) -> None:
    put(tmp_path / "models" / "chat.gguf")
    put(tmp_path / "models" / "embed.gguf", {"general.architecture": "bert", "bert.pooling_type": 2})
    catalogue = load(tmp_path)
    assert list(catalogue.models) == ["chat", "embed"]
    chat, embed = catalogue.models.values()
    assert (chat.n_ctx, chat.n_gpu_layers, chat.embedding, chat.flags) == (4096, 99, False, ())
    assert (embed.embedding, embed.pooling) == (True, "cls")
    assert catalogue.warnings == ()


def test_with_a_config_file_only_its_models_are_served(tmp_path: Path) -> None:
    put(tmp_path / "models" / "a.gguf")
    put(tmp_path / "models" / "b.gguf")
    config = """{"models": {
        "first": {"model_path": "a.gguf", "aliases": ["gpt-4o"], "pinned": true, "max_queue": 7,
                  "flags": ["-c", "1024"]},
        "gone": {"model_path": "c.gguf", "params": {"embedding": true}}}}"""
    catalogue = load(tmp_path, config)
    assert list(catalogue.models) == ["first", "gone"]
    first, gone = catalogue.models.values()
    assert (first.path, first.pinned, first.queue_max, first.n_ctx) == (
        tmp_path / "models" / "a.gguf",
        True,
        7,
        1024,
    )
    assert (first.context_length, first.problem) == (8192, None)
    assert (gone.embedding, gone.size_bytes) == (True, 0)
    assert gone.problem == f"{tmp_path / 'models' / 'c.gguf'} can't be read: No such file or directory"
    assert catalogue.find("gpt-4o") is first


def test_with_scan_models_both_are_served_and_no_file_twice(tmp_path: Path) -> None:
    put(tmp_path / "models" / "a.gguf")
    put(tmp_path / "models" / "b.gguf")
    config = """{"system": {"scan_models": true}, "models": {"first": {"model_path": "a.gguf"}}}"""
    assert list(load(tmp_path, config).models) == ["first", "b"]


def test_a_found_file_yields_its_name_to_the_config(tmp_path: Path) -> None:
    put(tmp_path / "models" / "a.gguf")
    other = put(tmp_path / "models" / "b.gguf")
    config = """{"system": {"scan_models": true}, "models": {"b": {"model_path": "a.gguf"}}}"""
    catalogue = load(tmp_path, config)
    assert {name: model.path.name for name, model in catalogue.models.items()} == {"b": "a.gguf"}
    assert catalogue.warnings == (f"{other} is left out: the config file has another model named b",)


def test_an_alias_yields_to_a_name(tmp_path: Path) -> None:
    put(tmp_path / "models" / "a.gguf")
    put(tmp_path / "models" / "b.gguf")
    config = """{"system": {"scan_models": true},
                 "models": {"first": {"model_path": "a.gguf", "aliases": ["b", "one"]}}}"""
    catalogue = load(tmp_path, config)
    assert catalogue.models["first"].aliases == ("one",)
    assert dict(catalogue.aliases) == {"one": "first"}
    assert catalogue.find("b") is catalogue.models["b"]
    assert catalogue.warnings == ("b is no alias of first any more: it means the model b",)


def test_in_single_model_mode_there_is_one_model(tmp_path: Path) -> None:
    put(tmp_path / "models" / "a.gguf")
    put(tmp_path / "models" / "other.gguf")
    catalogue = load(tmp_path, MODEL_NAME="a.gguf", EXTRA_ARGS="--parallel 2")
    [model] = catalogue.models.values()
    assert (model.name, model.n_ctx, model.n_gpu_layers, model.parallel) == ("a", 16_384, 99, 2)
    assert (model.path, model.context_length) == (tmp_path / "models" / "a.gguf", 8192)
