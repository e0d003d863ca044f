"""Deaths as llama-server's log tells of them: lines of several versions and backends, and misleading ones."""

from __future__ import annotations

import pytest

from corral.formats.engine_log import lost_its_port, ran_out_of_memory, refused_its_socket

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


TAKEN = """\
0.00.002.093 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8085
0.00.002.133 E srv  llama_server: exiting due to HTTP server error
"""


def test_a_port_that_was_lost_is_known_by_its_words() -> None:
    assert lost_its_port(TAKEN.splitlines())
    assert not refused_its_socket(TAKEN.splitlines())


@pytest.mark.parametrize(
    "name", ["/run/engines/8085.sock", "127.0.0.1,/run/engines/8085.sock"], ids=["new", "old"]
)
def test_a_socket_that_could_not_be_had_is_known_too_and_another_start_may_help(name: str) -> None:
    words = TAKEN.replace("127.0.0.1", name).splitlines()
    assert refused_its_socket(words)
    assert lost_its_port(words)


@pytest.mark.parametrize("lines", [*DEATHS.values(), *OTHER_DEATHS.values(), ""])
def test_no_other_death_is_taken_for_a_lost_port(lines: str) -> None:
    assert not lost_its_port(lines.splitlines())
