"""Memory as llama-server's log tells of it: lines of several versions and backends, and misleading ones."""

from __future__ import annotations

import pytest

from corral.formats.engine_log import HOST, MAPPED, buffers, ran_out_of_memory

MIB = 1 << 20


def mebibytes(lines: str) -> dict[str, float]:
    return {name: size / MIB for name, size in buffers(lines.splitlines()).items()}


# How much it took ---------------------------------------------------------------------------------

ON_THE_CPU = """\
0.00.006.458 I load_tensors:   CPU_Mapped model buffer size =    12.50 MiB
0.00.006.470 I load_tensors:   CPU_REPACK model buffer size =     8.00 MiB
0.00.007.637 I llama_context: constructing llama_context
0.00.007.649 I llama_context:        CPU  output buffer size =     0.25 MiB
0.00.007.774 I llama_kv_cache:        CPU KV buffer size =     0.50 MiB
0.00.007.779 I llama_kv_cache: size =    0.50 MiB (  4096 cells,   1 layers), K (f16):    0.25 MiB
0.00.008.963 I sched_reserve:        CPU compute buffer size =     4.75 MiB
0.04.000.387 D ~llama_context:  CPU compute buffer size is 4.7500 MiB, matches expectation of 4.7500 MiB
"""
ON_TWO_GPUS = """\
load_tensors: offloaded 33/33 layers to GPU
load_tensors:        CUDA0 model buffer size =  2048.00 MiB
load_tensors:        CUDA1 model buffer size =  2000.00 MiB
load_tensors:   CPU_Mapped model buffer size =    70.00 MiB
llama_context: constructing llama_context
llama_context:  CUDA_Host  output buffer size =     0.50 MiB
llama_kv_cache:      CUDA0 KV buffer size =   256.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =   256.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =    10.00 MiB
sched_reserve:      CUDA0 compute buffer size =   100.00 MiB
sched_reserve:      CUDA1 compute buffer size =   110.00 MiB
sched_reserve:  CUDA_Host compute buffer size =    16.00 MiB
llama_adapter_lora_init_impl:      CUDA1 LoRA buffer size =    20.00 MiB
"""
OF_AN_OLD_VERSION = """\
llm_load_tensors:        CPU buffer size =   280.00 MiB
llm_load_tensors:      CUDA0 buffer size =  4000.00 MiB
llama_kv_cache_init:      CUDA0 KV buffer size =  1024.00 MiB
llama_new_context_with_model: KV self size  = 1024.00 MiB, K (f16):  512.00 MiB, V (f16):  512.00 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =   560.00 MiB
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(ON_THE_CPU, {MAPPED: 12.5, HOST: 13.5}, id="on-the-cpu"),
        pytest.param(
            ON_TWO_GPUS, {"CUDA0": 2414.0, "CUDA1": 2386.0, MAPPED: 70.0, HOST: 16.5}, id="on-two-gpus"
        ),
        pytest.param(OF_AN_OLD_VERSION, {HOST: 280.0, "CUDA0": 5584.0}, id="of-an-old-version"),
        pytest.param("srv  llama_server: model loaded\n", {}, id="without-a-word-about-buffers"),
        pytest.param("", {}, id="empty"),
    ],
)
def test_buffers_are_added_up_by_where_they_lie(lines: str, expected: dict[str, float]) -> None:
    assert mebibytes(lines) == expected


def test_a_compute_buffer_that_is_reserved_again_is_counted_once_at_its_largest() -> None:
    lines = [
        f"sched_reserve:      CUDA0 compute buffer size = {size} MiB" for size in ("8.00", "9.00", "3.00")
    ]
    assert mebibytes("\n".join(lines)) == {"CUDA0": 9.0}


def test_a_draft_model_and_a_projector_compute_in_buffers_of_their_own() -> None:
    lines = """\
llama_context: constructing llama_context
sched_reserve:      CUDA0 compute buffer size =   100.00 MiB
llama_context: constructing llama_context
sched_reserve:      CUDA0 compute buffer size =    10.00 MiB
reserve_compute_meta:      CUDA0 compute buffer size =     1.00 MiB
"""
    assert mebibytes(lines) == {"CUDA0": 111.0}


@pytest.mark.parametrize(
    "line",
    [
        "load_tensors:        CUDA0 model buffer size =     1.50 MiB",
        "0.00.006.458 I load_tensors:        CUDA0 model buffer size =     1.50 MiB",
        "[34m0.00.005.989[0m [32mI [0mload_tensors:   CUDA0 model buffer size =     1.50 MiB",
        "\x1b[34m0.00.005.989\x1b[0m \x1b[32mI \x1b[0mload_tensors: CUDA0 model buffer size = 1.50 MiB",
        '{"level": "info", "msg": "load_tensors:        CUDA0 model buffer size =     1.50 MiB\\n"}',
        "DSV4:        CUDA0 DSV4 attn state buffer size =     1.50 MiB",
    ],
    ids=["bare", "with-time", "colours-made-harmless", "colours", "json", "several-words"],
)
def test_what_stands_around_the_words_does_not_matter(line: str) -> None:
    assert mebibytes(line) == {"CUDA0": 1.5}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("CPU", HOST),
        ("CPU_AARCH64", HOST),
        ("AMX", HOST),
        ("Vulkan_Host", HOST),
        ("MTL0_Mapped", MAPPED),
        ("Vulkan0", "Vulkan0"),
        ("RPC0[127.0.0.1:50052]", "RPC0[127.0.0.1:50052]"),
        ("CUDA_Split", "CUDA_Split"),
        ("Meta(CUDA0,CUDA1)", "Meta(CUDA0,CUDA1)"),
    ],
)
def test_a_name_says_whether_it_is_the_hosts_memory(name: str, place: str) -> None:
    assert mebibytes(f"load_tensors: {name} model buffer size = 2.00 MiB") == {place: 2.0}


@pytest.mark.parametrize(
    "line",
    [
        "load_tensors: CUDA0 model buffer size = nan MiB",
        "load_tensors: CUDA0 model buffer size = -1.00 MiB",
        "load_tensors: CUDA0 model buffer size = 9999999999999.00 MiB",
        "load_tensors: CUDA0 model buffer size = 1.00 GiB",
        "model buffer size = 1.00 MiB",
        "buffer size",
        ": " * 4000 + "buffer size",
        ": " + "a" * 8000 + " buffer size = 1.00 MiB",
    ],
    ids=lambda line: line[:60],
)
def test_anything_else_is_no_buffer(line: str) -> None:
    assert buffers([line]) == {}


# Whether it died for want of it -------------------------------------------------------------------

DEATHS = {
    "weights-on-cuda": """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: \
cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592
llama_model_load: error loading model: unable to allocate CUDA0 buffer
srv    load_model: failed to load model
srv  llama_server: exiting due to model loading error""",
    "cuda-while-computing": """\
CUDA error: out of memory
  current device: 0, in function alloc at ggml-cuda.cu:500
  cuMemCreate(&handle, reserve_size, &prop, 0)""",
    "cublas": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
    "vulkan": "ggml_vulkan: Device memory allocation of size 4294967296 failed.",
    "vulkan-itself": "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
    "malloc": "E ggml_aligned_malloc: insufficient memory (attempted to allocate 3906.89 MB)",
    "compute-buffer": """\
0.01.319.075 E ggml_aligned_malloc: insufficient memory (attempted to allocate 3906.89 MB)
0.01.319.103 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 4096667680
0.01.319.104 E ggml_gallocr_reserve_n_impl: failed to allocate CPU buffer of size 4096667680
0.01.341.964 E llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers
0.01.342.100 E cmn  common_init_: failed to create context with model 'demo.gguf'""",
    "key-value-cache": (
        "0.00.322.999 E llama_init_from_model: failed to initialize the context: "
        "failed to allocate buffer for kv cache"
    ),
    "c++": """\
terminate called after throwing an instance of 'std::bad_alloc'
  what():  std::bad_alloc""",
    "file-not-mapped": (
        "0.00.015.042 E llama_model_load: error loading model: mmap failed: Cannot allocate memory"
    ),
    "after-it-was-ready": """\
srv  llama_server: listening on http://127.0.0.1:8085
CUDA error: out of memory""",
}
OTHER_DEATHS = {
    "no-such-file": """\
gguf_init_from_file: failed to open GGUF file 'x.gguf' (No such file or directory)
srv  llama_server: exiting due to model loading error""",
    "file-can't-be-mapped-at-all": "llama_model_load: error loading model: mmap failed: No such device",
    "gpu-out-of-order": """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 512.00 MiB on device 0: \
cudaMalloc failed: CUDA driver version is insufficient for CUDA runtime version
alloc_tensor_range: failed to allocate CUDA0 buffer of size 536870912
llama_model_load: error loading model: unable to allocate CUDA0 buffer""",
    "not-locked": """\
0.00.005.698 W warning: failed to mlock 135168-byte buffer (after previously locking 0 bytes): \
Cannot allocate memory
srv  llama_server: exiting due to model loading error""",
    "not-read-ahead": "W llama_prefetch: madvise(MADV_WILLNEED) failed: Cannot allocate memory",
    "not-pinned": "W ggml_cuda_host_malloc: failed to allocate 64.00 MiB of pinned memory: out of memory",
    "prompt-not-cached": "E srv alloc: failed to allocate memory for prompt cache state: std::bad_alloc",
    "had-enough-at-the-second-try": """\
alloc_buffer: allocating 900.00 MiB on device 0: cudaMalloc failed: out of memory
sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism
Segmentation fault""",
    "long-overcome": """\
alloc_buffer: allocating 900.00 MiB on device 0: cudaMalloc failed: out of memory
srv  llama_server: model loaded
Segmentation fault""",
    "ready-in-spite-of-it": """\
alloc_buffer: allocating 900.00 MiB on device 0: cudaMalloc failed: out of memory
srv  llama_server: listening on http://127.0.0.1:8085
Segmentation fault""",
    "nothing-said": "",
}


@pytest.mark.parametrize("lines", DEATHS.values(), ids=DEATHS.keys())
@pytest.mark.parametrize("exit_code", [1, 134, -6])
def test_a_death_for_want_of_memory_is_known_by_its_last_words(lines: str, exit_code: int) -> None:
    assert ran_out_of_memory(lines.splitlines(), exit_code)


@pytest.mark.parametrize("lines", OTHER_DEATHS.values(), ids=OTHER_DEATHS.keys())
@pytest.mark.parametrize("exit_code", [1, 139, -6, -11])
def test_other_deaths_are_not_taken_for_one(lines: str, exit_code: int) -> None:
    assert not ran_out_of_memory(lines.splitlines(), exit_code)


@pytest.mark.parametrize(
    ("exit_code", "expected"), [(-9, True), (137, True), (-15, False), (0, False)], ids=str
)
def test_without_a_word_only_the_kernels_way_of_ending_it_counts(exit_code: int, expected: bool) -> None:
    assert ran_out_of_memory([], exit_code) is expected


def test_who_ends_well_did_not_die_of_anything() -> None:
    assert not ran_out_of_memory(DEATHS["weights-on-cuda"].splitlines(), 0)
