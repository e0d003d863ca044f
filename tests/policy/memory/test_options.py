"""A llama-server's command line and environment come out as the options that it would run with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from corral.policy.memory.options import MIB, LaunchOptions, Override, read_options

PLAIN = LaunchOptions()
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


def test_without_a_word_everything_is_as_llama_server_has_it() -> None:
    assert read_options([], {}) == LaunchOptions(
        context_tokens=0,
        slots=0,
        batch_tokens=2048,
        ubatch_tokens=512,
        cache_type_k="f16",
        flash_attention=True,
        gpu_layers=None,
        memory_map=True,
        prompt_cache_bytes_max=8192 * MIB,
    )


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("-c 8192", {"context_tokens": 8192}),
        ("--ctx-size 8192", {"context_tokens": 8192}),
        ("--ctx_size 8192", {"context_tokens": 8192}),
        ("-c 0", {"context_tokens": 0}),
        ("-np 2", {"slots": 2}),
        ("--parallel -1", {"slots": 0}),
        ("-kvu", {"unified_cache": True}),
        ("-kvu -no-kvu", {"unified_cache": False}),
        ("-b 1024 -ub 256", {"batch_tokens": 1024, "ubatch_tokens": 256}),
        ("-ctk q8_0 -ctv iq4_nl", {"cache_type_k": "q8_0", "cache_type_v": "iq4_nl"}),
        ("--cache-type-k bf16", {"cache_type_k": "bf16"}),
        ("-fa off", {"flash_attention": False}),
        ("-fa on", {"flash_attention": True}),
        ("-fa off -fa auto", {"flash_attention": True}),
        ("--swa-full", {"full_window_cache": True}),
        ("--embedding", {"embedding": True}),
        ("--embeddings", {"embedding": True}),
        ("--reranking", {"embedding": True}),
        ("--pooling mean", {"embedding": True}),
        ("--pooling none", {}),
        ("-ngl 20", {"gpu_layers": 20}),
        ("--gpu-layers 0", {"gpu_layers": 0}),
        ("-ngl 20 --n-gpu-layers all", {"gpu_layers": None}),
        ("-ngl -1", {"gpu_layers": None}),
        ("-dev none", {"gpu": False}),
        ("--device CUDA0", {"gpu": True}),
        ("-sm row", {"split_mode": "row"}),
        ("-ts 3,1", {"tensor_split": (3.0, 1.0)}),
        ("--tensor-split 1/2/0.5", {"tensor_split": (1.0, 2.0, 0.5)}),
        ("-nkvo", {"cache_on_gpu": False}),
        ("--no-kv-offload --kv-offload", {"cache_on_gpu": True}),
        ("--no-op-offload", {"offload_operations": False}),
        ("--no-mmap", {"memory_map": False}),
        ("-lm none", {"memory_map": False}),
        ("-lm mlock", {"memory_map": False}),
        ("-lm dio", {"memory_map": False}),
        ("-lm none --load-mode mmap+mlock", {"memory_map": True}),
        ("-nr", {"repack": False}),
        ("--mmproj eye.gguf --no-mmproj-offload", {"projector": "eye.gguf", "projector_on_gpu": False}),
        (
            "-md small.gguf -ngld 5 -ctkd q8_0 -ctvd q4_0",
            {
                "draft": "small.gguf",
                "draft_gpu_layers": 5,
                "draft_cache_type_k": "q8_0",
                "draft_cache_type_v": "q4_0",
            },
        ),
        ("--spec-draft-model small.gguf", {"draft": "small.gguf"}),
        ("--spec-type draft-mtp --draft-max 4", {"drafting": frozenset({"draft-mtp"}), "drafted_tokens": 4}),
        ("--spec-type none", {"drafting": frozenset()}),
        ("--cache-ram 100", {"prompt_cache_bytes_max": 100 * MIB}),
        ("-cram -1", {"prompt_cache_bytes_max": None}),
        ("-m model.gguf --port 80 --temp 0.2 -ngl 7 --jinja", {"gpu_layers": 7}),
    ],
)
def test_a_flag_means_what_it_means_to_llama_server(words: str, changes: dict[str, Any]) -> None:
    assert read_options(words.split(), {}) == replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("-ot ffn_.*_exps=CPU", [("ffn_.*_exps", "CPU")]),
        ("-ot a=CUDA0,b=CPU -ot c=CUDA1", [("a", "CUDA0"), ("b", "CPU"), ("c", "CUDA1")]),
        ("--cpu-moe", [(EXPERTS, "CPU")]),
        ("--n-cpu-moe 2", [(rf"blk\.0{EXPERTS}", "CPU"), (rf"blk\.1{EXPERTS}", "CPU")]),
        ("-ncffn 1", [(r"blk\.0\.ffn_(up|down|gate)\.", "CPU")]),
        ("-ot no-equals-sign", []),
        ("-ot =CPU", []),
    ],
)
def test_overrides_are_kept_in_the_order_in_which_they_are_tried(
    words: str, overrides: list[tuple[str, str]]
) -> None:
    assert read_options(words.split(), {}).overrides == tuple(Override(*pair) for pair in overrides)


def test_a_count_of_layers_beyond_all_reason_makes_no_more_rules_than_a_model_has_layers() -> None:
    assert len(read_options(["--n-cpu-moe", "99999999999"], {}).overrides) == 512


@pytest.mark.parametrize(
    ("buffer", "device"),
    [
        ("CPU", None),
        ("CUDA_Host", None),
        ("CUDA0", 0),
        ("CUDA12", 12),
        ("Vulkan1", 1),
        ("CUDA123456789", None),
    ],
)
def test_an_override_says_which_gpu_it_means(buffer: str, device: int | None) -> None:
    assert Override("x", buffer).device == device


@pytest.mark.parametrize(
    ("variables", "changes"),
    [
        ({"CTX_SIZE": "4096"}, {"context_tokens": 4096}),
        ({"N_PARALLEL": "3"}, {"slots": 3}),
        ({"BATCH": "100", "UBATCH": "50"}, {"batch_tokens": 100, "ubatch_tokens": 50}),
        ({"CACHE_TYPE_K": "q8_0", "CACHE_TYPE_V": "q4_1"}, {"cache_type_k": "q8_0", "cache_type_v": "q4_1"}),
        ({"FLASH_ATTN": "off"}, {"flash_attention": False}),
        ({"SWA_FULL": "true"}, {"full_window_cache": True}),
        ({"KV_UNIFIED": "1"}, {"unified_cache": True}),
        ({"KV_OFFLOAD": "0"}, {"cache_on_gpu": False}),
        ({"NO_KV_OFFLOAD": ""}, {"cache_on_gpu": False}),
        ({"NO_MMAP": "0"}, {"memory_map": False}),
        ({"LOAD_MODE": "none"}, {"memory_map": False}),
        ({"NO_REPACK": "1"}, {"repack": False}),
        ({"EMBEDDINGS": "on"}, {"embedding": True}),
        ({"RERANKING": "1"}, {"embedding": True}),
        ({"N_GPU_LAYERS": "12"}, {"gpu_layers": 12}),
        ({"DEVICE": "none"}, {"gpu": False}),
        ({"SPLIT_MODE": "none"}, {"split_mode": "none"}),
        ({"TENSOR_SPLIT": "1,3"}, {"tensor_split": (1.0, 3.0)}),
        ({"MMPROJ": "eye.gguf"}, {"projector": "eye.gguf"}),
        ({"SPEC_DRAFT_MODEL": "s.gguf"}, {"draft": "s.gguf"}),
        ({"N_GPU_LAYERS_DRAFT": "1"}, {"draft_gpu_layers": 1}),
        ({"OVERRIDE_TENSOR": "a=CPU"}, {"overrides": (Override("a", "CPU"),)}),
        ({"CPU_MOE": "1"}, {"overrides": (Override(EXPERTS, "CPU"),)}),
        ({"CPU_MOE": "0"}, {}),
        ({"CACHE_RAM": "0"}, {"prompt_cache_bytes_max": 0}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_variable_says_the_same_as_its_flag(variables: dict[str, str], changes: dict[str, Any]) -> None:
    environment = {f"LLAMA_ARG_{name}": text for name, text in variables.items()}
    assert read_options([], environment) == replace(PLAIN, **changes)


def test_a_flag_beats_its_variable_and_the_last_flag_beats_those_before() -> None:
    environment = {"LLAMA_ARG_CTX_SIZE": "1024", "LLAMA_ARG_N_GPU_LAYERS": "3"}
    options = read_options(["-c", "2048", "--ctx-size", "4096"], environment)
    assert (options.context_tokens, options.gpu_layers) == (4096, 3)


def test_overrides_of_the_environment_come_before_those_of_the_command_line() -> None:
    options = read_options(["-ot", "b=CPU"], {"LLAMA_ARG_OVERRIDE_TENSOR": "a=CPU"})
    assert [rule.pattern for rule in options.overrides] == ["a", "b"]


@pytest.mark.parametrize(
    "words",
    [
        "-c",
        "-c many",
        "-c -5",
        "-ctk q3_k",
        "-fa perhaps",
        "-b 0",
        "-lm tape",
        "-ts 1,x",
        "-ngl some",
        "-np x",
    ],
)
def test_what_llama_server_would_refuse_changes_nothing(words: str) -> None:
    assert read_options(words.split(), {}) == PLAIN


def test_slots_that_nobody_counted_are_four_and_share_one_cache() -> None:
    decided, counted = read_options([], {}), read_options(["-np", "4"], {})
    assert (decided.sequences, decided.shares_cache) == (4, True)
    assert (counted.sequences, counted.shares_cache) == (4, False)
    assert read_options(["-np", "4", "-kvu"], {}).shares_cache


def test_a_draft_runs_with_its_own_flags_and_otherwise_with_those_of_the_model() -> None:
    words = "-c 4096 -ub 128 -ngl 10 -ctk q8_0 -ot a=CPU -md s.gguf -ngld 4 -ctvd q4_0 -otd b=CPU --mmproj e"
    draft = read_options(words.split(), {}).for_draft()
    assert (draft.context_tokens, draft.ubatch_tokens, draft.gpu_layers) == (4096, 128, 4)
    assert (draft.cache_type_k, draft.cache_type_v) == ("f16", "q4_0")
    assert draft.overrides == (Override("b", "CPU"),)
    assert (draft.draft, draft.projector) == (None, None)


@pytest.mark.parametrize(
    ("words", "outputs"),
    [("", 1), ("--draft-max 8", 1), ("-md s.gguf", 4), ("--spec-type draft-mtp --draft-max 8", 9)],
)
def test_drafted_tokens_are_all_checked_at_once(words: str, outputs: int) -> None:
    assert read_options(words.split(), {}).outputs_per_slot == outputs
