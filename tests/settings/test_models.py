"""Models of the config file and of single-model mode: fields, flags, names and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corral.settings import ModelSettings, make_model
from tests.settings.desk import Desk


def load_one(desk: Desk, entry: dict[str, Any], **sections: Any) -> ModelSettings:
    return desk.load({**sections, "models": {"m": {"model_path": "/m.gguf", **entry}}}).models["m"]


def test_a_model_of_nothing_but_a_path_has_every_default(desk: Desk) -> None:
    assert load_one(desk, {}) == ModelSettings(
        name="m",
        path=Path("/m.gguf"),
        flags=(),
        n_ctx=4096,
        n_gpu_layers=99,
        type_k="f16",
        type_v="f16",
        embedding=False,
        parallel=None,
        aliases=(),
        pinned=False,
        queue_max=None,
        in_flags=frozenset(),
    )


def test_every_key_of_a_model_is_read(desk: Desk) -> None:
    model = load_one(
        desk,
        {
            "flags": ["--parallel", "2", "--jinja"],
            "aliases": ["gpt-4o-mini", "org/m"],
            "pinned": True,
            "max_queue": 7,
            "params": {
                "n_gpu_layers": 20,
                "n_ctx": 512,
                "type_k": "q8_0",
                "type_v": "q4_0",
                "embedding": True,
            },
        },
    )
    assert model == ModelSettings(
        name="m",
        path=Path("/m.gguf"),
        flags=("--parallel", "2", "--jinja"),
        n_ctx=512,
        n_gpu_layers=20,
        type_k="q8_0",
        type_v="q4_0",
        embedding=True,
        parallel=2,
        aliases=("gpt-4o-mini", "org/m"),
        pinned=True,
        queue_max=7,
        in_flags=frozenset({"parallel"}),
    )


@pytest.mark.parametrize(
    ("model_path", "base", "expected"),
    [
        ("m.gguf", "/base", "/base/m.gguf"),
        ("deep/m.gguf", "base", "CWD/base/deep/m.gguf"),
        ("/abs/m.gguf", "/base", "/abs/m.gguf"),
        ("~/m.gguf", "/base", "HOME/m.gguf"),
    ],
)
def test_a_relative_path_lies_below_the_base(desk: Desk, model_path: str, base: str, expected: str) -> None:
    config = {"system": {"base_models_path": base}, "models": {"m": {"model_path": model_path}}}
    expected = expected.replace("CWD", str(desk.cwd)).replace("HOME", str(desk.home))
    assert desk.load(config).models["m"].path == Path(expected)


@pytest.mark.parametrize(
    ("params", "pool", "layers"),
    [
        ({}, {}, 99),
        ({}, {"gpu_layers": 30}, 30),
        ({}, {"gpu_layers": -1}, 0),
        ({}, {"gpu_layers": 0}, 0),
        ({"n_gpu_layers": 20}, {"gpu_layers": 30}, 20),
        ({"n_gpu_layers": -1}, {}, 0),
        ({"n_gpu_layers": 0}, {}, 0),
    ],
)
def test_gpu_layers_come_from_the_model_or_the_pool_and_minus_one_is_the_cpu(
    desk: Desk, params: dict[str, int], pool: dict[str, int], layers: int
) -> None:
    assert load_one(desk, {"params": params}, server_pool=pool).n_gpu_layers == layers


def test_flags_beat_params_with_one_warning(desk: Desk) -> None:
    entry = {
        "model_path": "m.gguf",
        "flags": ["--ctx-size", "8192", "-ngl", "5"],
        "params": {"n_ctx": 1024, "n_gpu_layers": 9, "type_k": "q8_0"},
    }
    settings = desk.load({"models": {"m": entry}})
    model = settings.models["m"]
    assert (model.n_ctx, model.n_gpu_layers, model.type_k) == (8192, 5, "q8_0")
    assert model.in_flags == {"n_ctx", "n_gpu_layers"}
    assert settings.warnings == (
        f"models.m in {desk.cwd}/config.json: flags and params both set n_ctx, n_gpu_layers; the flags win",
    )


def test_flags_and_params_about_different_things_are_no_warning(desk: Desk) -> None:
    entry = {"model_path": "m.gguf", "flags": ["--jinja"], "params": {"n_ctx": 1024}}
    assert desk.load({"models": {"m": entry}}).warnings == ()


@pytest.mark.parametrize(
    ("entry", "key", "expected"),
    [
        ({}, "models.m.model_path", "is missing; it must be the path of the model's file"),
        (5, "models.m", "is 5; it must be an object with a model_path"),
        ({"model_path": ""}, "models.m.model_path", 'is ""; it must be a path'),
        (
            {"model_path": "m", "flags": "-ngl 99"},
            "models.m.flags",
            'is "-ngl 99"; it must be a list of arguments in quotes, such as ["-ngl", "99"]',
        ),
        (
            {"model_path": "m", "flags": ["-ngl", 99]},
            "models.m.flags",
            'is ["-ngl", 99]; it must be a list of arguments in quotes, such as ["-ngl", "99"]',
        ),
        (
            {"model_path": "m", "flags": ["--jinja", "--port", "9"]},
            "models.m.flags",
            "has --port, which the gateway manages itself; it must be left out",
        ),
        (
            {"model_path": "m", "params": {"type_k": "zzz"}},
            "models.m.params.type_k",
            'is "zzz"; it must be one of f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1',
        ),
        (
            {"model_path": "m", "params": {"n_ctx": -1}},
            "models.m.params.n_ctx",
            "is -1; it must be a whole number from 0 to 16777216",
        ),
        ({"model_path": "m", "params": 3}, "models.m.params", "is 3; it must be an object in braces"),
        ({"model_path": "m", "pinned": "yes"}, "models.m.pinned", 'is "yes"; it must be true or false'),
        (
            {"model_path": "m", "aliases": "a"},
            "models.m.aliases",
            'is "a"; it must be a list of model names such as ["qwen-7b"]',
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_model_is_told_by_its_key(desk: Desk, entry: Any, key: str, expected: str) -> None:
    assert desk.refusal({"models": {"m": entry}}) == f"{key} in {desk.cwd}/config.json {expected}"


def test_a_wrong_name_is_told(desk: Desk) -> None:
    assert desk.refusal({"models": {"bad name": {"model_path": "m"}}}) == (
        f"models.bad name in {desk.cwd}/config.json: a model's name must begin with a letter or digit "
        "and go on with letters, digits and . _ : / @ + -"
    )


@pytest.mark.parametrize(
    ("aliases_of_a", "aliases_of_b", "message"),
    [
        (["b"], [], 'models.a.aliases in FILE has "b", which means b; it must be unique'),
        (["x"], ["x"], 'models.b.aliases in FILE has "x", which means a; it must be unique'),
    ],
)
def test_a_name_means_one_model(
    desk: Desk, aliases_of_a: list[str], aliases_of_b: list[str], message: str
) -> None:
    models = {
        "a": {"model_path": "a", "aliases": aliases_of_a},
        "b": {"model_path": "b", "aliases": aliases_of_b},
    }
    assert desk.refusal({"models": models}) == message.replace("FILE", f"{desk.cwd}/config.json")


def test_models_that_this_version_cannot_serve_are_left_out_with_one_warning_each(desk: Desk) -> None:
    models = {
        "here": {"model_path": "here.gguf"},
        "org/phi": {"repo": "org/phi-GGUF", "variant": "*Q4_K_M*.gguf"},
        "far": {"type": "remote", "base_url": "http://other:8000", "api_key_env": "FAR_KEY"},
    }
    settings = desk.load(
        {"models": models, "default_model": "far", "system": {"preload_models": ["far", "here"]}}
    )
    assert list(settings.models) == ["here"]
    assert settings.default_model is None
    assert settings.herd.preload == ("here",)
    assert settings.warnings == (
        f"models.org/phi in {desk.cwd}/config.json has repo, not supported yet by this version: left out",
        f"models.far in {desk.cwd}/config.json has type, not supported yet by this version: left out",
    )


def test_a_model_found_elsewhere_is_made_the_same_way() -> None:
    model = make_model("m", Path("/m.gguf"), gpu_layers=12, flags=("--mmproj", "/p.gguf"), embedding=True)
    assert (model.n_gpu_layers, model.n_ctx, model.embedding) == (12, 4096, True)
    assert model.flags == ("--mmproj", "/p.gguf")


@pytest.mark.parametrize(
    ("environ", "path", "name"),
    [
        ({"MODEL_PATH": "/x/qwen.gguf"}, "/x/qwen.gguf", "qwen"),
        ({"MODEL_PATH": "x/qwen.gguf"}, "CWD/x/qwen.gguf", "qwen"),
        ({"MODEL_NAME": "qwen.gguf"}, "CWD/data/models/qwen.gguf", "qwen"),
        ({"MODEL_NAME": "qwen"}, "CWD/data/models/qwen.gguf", "qwen"),
        ({"MODEL_NAME": "my model.gguf", "MODELS_DIR": "/d"}, "/d/my model.gguf", "my-model"),
        ({"MODEL_NAME": "qwen.gguf", "BASE_MODELS_PATH": "/b"}, "/b/qwen.gguf", "qwen"),
        ({"MODEL_NAME": "a.gguf", "MODEL_PATH": "/b.gguf"}, "/b.gguf", "b"),
    ],
    ids=str,
)
def test_the_environment_names_the_one_model(
    desk: Desk, environ: dict[str, str], path: str, name: str
) -> None:
    single = desk.load(environ=environ).single_model
    assert single is not None
    assert single.model.path == Path(path.replace("CWD", str(desk.cwd)))
    assert single.model.name == name


def test_the_one_model_has_defaults_of_its_own(desk: Desk) -> None:
    single = desk.load(environ={"MODEL_PATH": "/m.gguf"}).single_model
    assert single is not None
    assert (single.model.n_ctx, single.model.n_gpu_layers, single.port) == (16_384, 99, 8080)
    assert (single.model.flags, single.model.in_flags) == ((), frozenset())


def test_the_one_model_takes_its_variables(desk: Desk) -> None:
    environ = {
        "MODEL_PATH": "/m.gguf",
        "NGL": "-1",
        "CTX": "4096",
        "PORT_BACKEND": "9090",
        "EXTRA_ARGS": "--jinja --chat-template 'a b' -np 2",
    }
    single = desk.load(environ=environ).single_model
    assert single is not None
    assert (single.model.n_gpu_layers, single.model.n_ctx, single.port) == (0, 4096, 9090)
    assert single.model.flags == ("--jinja", "--chat-template", "a b", "-np", "2")
    assert single.model.parallel == 2


def test_without_a_model_path_or_name_there_is_no_one_model(desk: Desk) -> None:
    assert desk.load(environ={"MODELS_DIR": "/d", "NGL": "3", "CTX": "1"}).single_model is None


def test_managed_flags_are_refused_in_extra_args_too(desk: Desk) -> None:
    assert desk.refusal(environ={"MODEL_PATH": "/m.gguf", "EXTRA_ARGS": "--host 0.0.0.0"}) == (
        "EXTRA_ARGS has --host, which the gateway manages itself; it must be left out"
    )


def test_the_one_model_puts_the_config_files_models_aside(desk: Desk) -> None:
    config = {
        "models": {"m": {"model_path": "m.gguf"}},
        "default_model": "m",
        "system": {"preload_models": [], "scan_models": True},
    }
    settings = desk.load(config, {"MODEL_PATH": "/one.gguf"})
    assert settings.models == {}
    assert settings.default_model is None
    assert settings.herd.preload == ("*",)
    assert settings.herd.scan_models is False
    assert settings.warnings == (
        f"the models of {desk.cwd}/config.json are left out: the environment names the only one",
    )
