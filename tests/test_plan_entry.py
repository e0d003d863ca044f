"""The command that says what fits where: by itself, from files and readings, with nothing started."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import plan
from corral.drivers import model_store
from corral.drivers.learned_store import LearnedStore
from corral.fleet.engines import plain_command
from corral.fleet.footprints import measure_out
from corral.formats.learned import Learned
from corral.policy.commitments import Device
from corral.policy.footprint import PredictedFootprint
from corral.policy.placement import HOST
from corral.settings import Settings, children_environment, load
from tests.policy.memory.files import MIB, File, transformer
from tests.settings.desk import Desk
from tests.stand_in_nvml import NvmlWorld
from tests.support import ROOT

GIB = 1 << 30
# 804 MiB on one card with 4096 tokens, and a tenth more is set aside.
LARGE = transformer(layers=8, width=2048, heads=16, kv_heads=4, head=128, feed_forward=5632)


class Place:
    """A working directory with models in it, from which the command is run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / "data" / "models"
        self.models.mkdir(parents=True)

    def configure(self, models: Mapping[str, Any], **sections: Any) -> None:
        document = {"models": {name: {"model_path": f"{name}.gguf", **own} for name, own in models.items()}}
        (self.root / "config.json").write_text(json.dumps(document | sections))

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(ROOT / "scripts" / "plan.py"), *arguments]
        own = {"HOME": str(self.root), "PATH": "", "INSTANCE_ID": "box", **(environ or {})}
        return subprocess.run(argv, cwd=self.root, env=own, capture_output=True, text=True, check=False)

    def lines(self, *arguments: str, code: int = 0, environ: Mapping[str, str] | None = None) -> list[str]:
        done = self.run(*arguments, environ=environ)
        assert (done.returncode, done.stderr) == (code, "")
        return done.stdout.splitlines()

    def document(self, *arguments: str, code: int = 0, environ: Mapping[str, str] | None = None) -> Any:
        return json.loads("\n".join(self.lines("--json", *arguments, code=code, environ=environ)))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


@pytest.fixture
def demo(place: Place, demo_files: Path) -> Place:
    shutil.copytree(demo_files, place.models, dirs_exist_ok=True)
    return place


def row(lines: list[str], first: str, last: bool = False) -> list[str]:
    """The words of the first line, or the last one, that begins with this word."""
    found = [line.split() for line in lines if line.split()[:1] == [first]]
    return found[-1 if last else 0]


# On this machine ----------------------------------------------------------------------------------


def test_the_demo_models_fit_and_nothing_is_left_behind(demo: Place) -> None:
    before = sorted(demo.root.rglob("*"))
    lines = demo.lines(environ={"CUDA_VISIBLE_DEVICES": ""})
    assert sorted(demo.root.rglob("*")) == before
    assert row(lines, "DEVICE") == ["DEVICE", "TOTAL", "IN", "USE", "MARGIN", "FREE"]
    assert row(lines, "demo")[:4] == ["demo", "136Ki", "4,096", "1"]
    assert row(lines, "demo", last=True)[2:] == ["on", "the", "CPU", "predicted"]
    assert "1. demo, demo-embed. Free then: main memory " in "\n".join(lines)


def test_the_cards_of_the_machine_are_read(demo: Place, tmp_path: Path) -> None:
    world = NvmlWorld(tmp_path / "world")
    world.gpu("GPU-a", total_mib=24 * 1024, foreign_mib=2048)
    world.gpu("GPU-b", total_mib=8 * 1024)
    lines = demo.lines(environ=world.environment())
    assert "GPU 0        Stand-in GPU  24.0Gi   2.0Gi   768Mi  21.2Gi" in lines
    assert "GPU 1        Stand-in GPU   8.0Gi       0   256Mi   7.8Gi" in lines
    # The fullest card on which it has room.
    found = row(lines, "demo", last=True)
    assert (found[1], found[-4:]) == ("–", ["on", "one", "GPU", "predicted"])


@pytest.mark.parametrize(
    ("environ", "config", "cards"),
    [
        pytest.param({}, {}, ["GPU-a", "GPU-b"], id="all"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "1"}, {}, ["GPU-b"], id="visible"),
        pytest.param({}, {"system": {"gpu_devices": [0]}}, ["GPU-a"], id="chosen"),
        pytest.param({}, {"gpu": {"enabled": False}}, [], id="none"),
    ],
)
def test_only_the_cards_count_that_the_gateway_would_use(
    demo: Place, tmp_path: Path, environ: dict[str, str], config: dict[str, Any], cards: list[str]
) -> None:
    world = NvmlWorld(tmp_path / "world")
    world.gpu("GPU-a", total_mib=24_000)
    world.gpu("GPU-b", total_mib=8_000)
    (demo.root / "config.json").write_text(json.dumps(config))
    said = demo.document(environ=world.environment() | environ)
    assert [device["device"] for device in said["devices"]] == [*cards, "host"]


def test_what_a_load_has_really_taken_counts_more_than_a_prediction(demo: Place) -> None:
    config = settings_of(demo)
    model = model_store.catalogue(config).models["demo"]
    known = measure_out(
        model,
        plain_command(model, config),
        children_environment(config),
        lambda key: None,
        gpus=True,
        multiplier=1.1,
    )
    assert isinstance(known, PredictedFootprint)
    store = LearnedStore(config.paths.state / "corral.db")
    store.remember(known.gpu_key(known.layer_count), Learned(1000 * MIB, 400 * MIB))
    store.close()
    demo_plan, embed_plan = demo.document("--gpus", "8GiB")["models"]
    assert demo_plan["devices"][0]["bytes"] >= 1000 * MIB > demo_plan["devices"][0]["predicted_bytes"]
    assert [share["source"] for share in demo_plan["devices"]] == ["learned", "predicted"]
    assert {share["source"] for share in embed_plan["devices"]} == {"predicted"}
    assert row(demo.lines("--gpus", "8GiB"), "demo", last=True)[-1] == "learned/predicted"


def settings_of(place: Place) -> Settings:
    environ = {"HOME": str(place.root), "PATH": "", "INSTANCE_ID": "box"}
    return load(environ, cwd=place.root)


# On a machine that is imagined --------------------------------------------------------------------


def test_imagined_cards_are_empty_and_hold_as_much_as_was_said(place: Place) -> None:
    LARGE.write(place.models / "a.gguf")
    lines = place.lines("--gpus", "1000MiB,2G")
    assert "GPU 0        imagined  1000Mi       0  31.2Mi   969Mi" in lines
    assert "GPU 1        imagined   2.0Gi       0  64.0Mi   1.9Gi" in lines
    found = row(lines, "a", last=True)
    assert (found[:3], found[4:]) == (["a", "884Mi", "–"], ["on", "one", "GPU", "predicted"])


def test_sets_follow_the_order_of_the_config_and_the_limit_on_models(place: Place) -> None:
    for name in "abc":
        LARGE.write(place.models / f"{name}.gguf")
    place.configure({"c": {}, "a": {}, "b": {}}, system={"max_concurrent_models": 2})
    assert [each["models"] for each in place.document("--gpus", "1000MiB")["together"]] == [
        ["c"],
        ["a"],
        ["b"],
    ]
    together = place.document("--gpus", "9GiB")["together"]
    assert [each["models"] for each in together] == [["c", "a"], ["b"]]
    assert "at most 2 at a time (max_concurrent_models):" in "\n".join(place.lines("--gpus", "9GiB"))


def test_a_model_that_fits_nowhere_is_the_exit_code_and_comes_with_what_would_fit(place: Place) -> None:
    LARGE.write(place.models / "a.gguf")
    LARGE.write(place.models / "long.gguf")
    place.configure({"long": {"flags": ["-ngl", "99", "-c", "65536"]}, "a": {}}, gpu={"cpu_fallback": False})
    lines = place.lines("--gpus", "1000MiB", code=1)
    assert row(lines, "long", last=True)[:7] == ["long", "–", "–", "does", "not", "fit"]
    text = " ".join(lines)
    assert "'long' does not fit: it needs " in text
    assert "It would fit with a context of " in text
    assert place.document("--gpus", "1000MiB", "--model", "a")["all_fit"] is True
    assert place.document("--gpus", "1000MiB", code=1)["all_fit"] is False
    said = place.document("--gpus", "1000MiB", code=1)["models"][0]["would_fit_with"]["context_tokens"]
    assert place.run("--gpus", "1000MiB", "--context", str(said)).returncode == 0
    assert place.run("--gpus", "1000MiB", "--context", str(said + 256)).returncode == 1


def test_a_model_that_is_partly_on_cards_is_told_what_would_be_whole(place: Place) -> None:
    LARGE.write(place.models / "long.gguf")
    lines = place.lines("--gpus", "1000MiB", "--context", "65536")
    assert " ".join(row(lines, "long", last=True)[3:]).endswith(" of 9 layers on GPUs predicted")
    assert "'long' is not all on GPUs. It needs " in "\n".join(lines)


@pytest.mark.parametrize(
    "entry", [{"params": {"n_ctx": 4096}}, {"flags": ["--ctx-size", "4096"]}], ids=["params", "flags"]
)
def test_another_context_is_as_if_the_settings_had_said_so(place: Place, entry: dict[str, Any]) -> None:
    LARGE.write(place.models / "a.gguf")
    place.configure({"a": entry})
    [plain] = place.document("--gpus", "4GiB")["models"]
    [longer] = place.document("--gpus", "4GiB", "--context", "16384")["models"]
    assert (plain["context_tokens"], longer["context_tokens"]) == (4096, 16384)
    assert longer["predicted"]["kv_cache"] == 4 * plain["predicted"]["kv_cache"]


def test_one_model_alone_is_told_of_by_its_alias_too(demo: Place) -> None:
    demo.configure({"demo": {"aliases": ["nick"]}, "demo-embed": {}})
    [only] = demo.document("--model", "nick")["models"]
    assert only["model"] == "demo"
    assert "Which fit together" not in "\n".join(demo.lines("--model", "nick"))


# What can go wrong --------------------------------------------------------------------------------


def test_a_file_that_is_no_model_is_told_by_name_and_spoils_no_table(demo: Place) -> None:
    (demo.models / "torn.gguf").write_bytes(b"GGUF")
    lines = demo.lines(code=1)
    assert row(lines, "torn")[:4] == ["torn", "can't", "be", "used:"]
    assert "demo, demo-embed" in "\n".join(lines)
    assert demo.document(code=1)["models"][-1].keys() == {"model", "size_bytes", "problem"}


def test_without_models_it_says_where_to_put_one(place: Place) -> None:
    lines = place.lines()
    assert f"There is no model yet: copy a .gguf file into {place.models}." in " ".join(lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nobody"], "there is no model 'nobody'. There is: demo, demo-embed"),
        (["--gpus", "24"], "'24' is no size: write 24GiB"),
        (["--gpus", "24GiB,"], "'' is no size"),
        (["--context", "0"], "0 is no number of tokens from 1 to 16777216"),
        (["--context", "many"], "many is no number of tokens"),
    ],
)
def test_a_mistake_is_told_and_is_no_answer(demo: Place, arguments: list[str], said: str) -> None:
    done = demo.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_wrong_setting_is_told_as_the_gateway_would(demo: Place) -> None:
    done = demo.run(environ={"GATEWAY_PORT": "many"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("plan.py: GATEWAY_PORT is ")


def test_warnings_go_where_they_spoil_nothing(demo: Place) -> None:
    demo.configure({"demo": {}}, surprise={})
    done = demo.run("--json")
    assert done.returncode == 0
    assert "surprise" in done.stderr
    assert json.loads(done.stdout)["all_fit"]


# What it looks like -------------------------------------------------------------------------------


def test_no_line_is_wider_than_a_terminal_with_eight_cards_and_a_long_name(place: Place) -> None:
    for name in ("a", "a-model-whose-name-goes-on-and-on-for-a-while"):
        LARGE.write(place.models / f"{name}.gguf")
    lines = place.lines("--gpus", "24GiB,24GiB,24GiB")
    assert max(map(len, lines)) <= 100
    assert row(lines, "a-model-whose-name-goes-on-and-on…")
    (place.models / "a-model-whose-name-goes-on-and-on-for-a-while.gguf").unlink()
    assert max(map(len, place.lines("--gpus", ",".join(["24GiB"] * 8), "--context", "524288"))) <= 100


def q4_k_m(architecture: str, layers: int, *, tied: bool = False, **shape: int) -> File:
    """A file with the tensors of this quantisation, as llama.cpp divides the bits among them."""
    file = transformer(architecture, layers=layers, head=128, kind="Q4_K", tied=tied, **shape)
    better = ["token_embd.weight" if tied else "output.weight"]
    eighth = layers // 8
    for layer in range(layers):
        if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2:
            better += [f"blk.{layer}.attn_v.weight", f"blk.{layer}.ffn_down.weight"]
    return file.with_tensors({name: (file.tensors[name][0], "Q6_K") for name in better})


# Llama 3.1 8B, Llama 3.2 3B and Qwen 2.5 32B, as far as memory is concerned.
LLAMA, SMALL_LLAMA, QWEN = (
    q4_k_m("llama", 32, width=4096, heads=32, kv_heads=8, feed_forward=14336, words=128256),
    q4_k_m("llama", 28, width=3072, heads=24, kv_heads=8, feed_forward=8192, words=128256, tied=True),
    q4_k_m("qwen2", 64, width=5120, heads=40, kv_heads=8, feed_forward=27648, words=152064),
)
SHOWN = {
    "llama-8b": (LLAMA, ["--ctx-size", "16384", "--parallel", "2"]),
    "qwen-32b": (QWEN, ["--ctx-size", "32768"]),
    "llama-3b": (SMALL_LLAMA, ["--ctx-size", "8192"]),
}


def test_the_readme_shows_what_the_command_prints(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    models = desk.cwd / "data" / "models"
    models.mkdir(parents=True)
    for name, (file, _) in SHOWN.items():
        file.write(models / f"{name}.gguf")
    entries = {name: {"model_path": f"{name}.gguf", "flags": flags} for name, (_, flags) in SHOWN.items()}
    config = desk.load({"models": entries})
    card = Device("GPU-a", 0, 24564 * MIB, 412 * MIB, {})
    memory = Device(HOST, 99, 64195 * MIB, 5120 * MIB, {})
    machine = plan.Machine((card, memory), {"GPU-a": "NVIDIA GeForce RTX 4090"})
    served = list(model_store.catalogue(config).models.values())
    page = "\n".join(plan.page(plan.answer_for(config, served, machine)))
    assert f"```\n{page}\n```" in (ROOT / "README.md").read_text(encoding="utf-8"), page
