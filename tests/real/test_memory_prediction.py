"""Predictions against the real llama-server, which logs the size of every buffer that it allocates.

Weights, caches and states must be the same to the last hundredth of a MiB, which is as far as the log
goes. The compute buffer must be within a tenth. What a process really takes is compared as well, after
it has worked, since memory that was only reserved is not taken yet.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from corral.formats.gguf import Gguf, read
from corral.policy.memory import HOST_ONLY, Prediction, predict, read_options
from tests.policy.memory import files
from tests.policy.memory.files import MIB, File, transformer
from tests.support import ask

START_TIMEOUT_S = 20.0
LOGGED_MIB = 0.011  # a number with two decimals, give or take the padding between tensors
COMPUTE_TOLERANCE = 0.10

# One prompt that fills a batch.
PROMPT = list(range(2, 502))


class Buffers(NamedTuple):
    """What the log says, in MiB."""

    weights: float
    cache: float
    state: float
    compute: float
    output: float


class Running(NamedTuple):
    buffers: Buffers
    url: str
    pid: int


@contextmanager
def running(engine: Path, model: Path, words: list[str]) -> Iterator[Running]:
    """A llama-server that is up. Verbosity 4 is what makes it log its buffers."""
    argv = [
        str(engine),
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "-fit",
        "off",
        "-lv",
        "4",
    ]
    with subprocess.Popen(
        [*argv, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        watch = threading.Timer(START_TIMEOUT_S, process.kill)
        watch.start()
        try:
            assert process.stderr is not None
            log, url = "", None
            for line in process.stderr:
                log += line
                if url := re.search(r"listening on (http://\S+)", line):
                    break
            assert url is not None, f"llama-server did not come up:\n{log[-2000:]}"
            # The pipe must be emptied, or the server would stop at a full one.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Running(_buffers(log), url[1], process.pid)
        finally:
            watch.cancel()
            process.kill()


def _buffers(log: str) -> Buffers:
    def total(kind: str) -> float:
        return sum(float(size) for size in re.findall(rf"{kind} buffer size = +([\d.]+) MiB", log))

    return Buffers(total(" model"), total("KV"), total("RS"), total("compute"), total("output"))


def header(path: Path) -> Gguf:
    with path.open("rb") as file:

        def read_at(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return read(read_at, path.stat().st_size)


WritesModel = Callable[[File], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WritesModel:
    """Writes a model to the disk, once however often it is asked for."""
    folder = tmp_path_factory.mktemp("memory")
    known: dict[bytes, Path] = {}

    def write(file: File) -> Path:
        whole = file.bytes()
        if whole not in known:
            known[whole] = folder / f"{file.architecture}-{len(known)}.gguf"
            known[whole].write_bytes(whole)
        return known[whole]

    return write


PLAIN = transformer(layers=6, width=1024, heads=16, kv_heads=4, head=64, feed_forward=2816)
MIXTURE = files.mixture()
SUBJECTS: dict[str, tuple[File, str]] = {
    "as trained": (PLAIN, ""),
    "a context": (PLAIN, "-c 8192"),
    "an odd context": (PLAIN, "-c 5000 -np 3"),
    "a tiny context": (PLAIN, "-c 100 -np 2"),
    "one slot": (PLAIN, "-c 4096 -np 1"),
    "slots that share": (PLAIN, "-c 8192 -np 8 -kvu"),
    "many slots": (PLAIN, "-c 16384 -np 32"),
    "q8_0": (PLAIN, "-c 4096 -ctk q8_0 -ctv q8_0"),
    "q5_1 and q4_1": (PLAIN, "-c 4096 -ctk q5_1 -ctv q4_1"),
    "iq4_nl and q5_0": (PLAIN, "-c 4096 -ctk iq4_nl -ctv q5_0"),
    "f32 and bf16": (PLAIN, "-c 4096 -ctk f32 -ctv bf16"),
    "a small batch": (PLAIN, "-c 4096 -ub 64"),
    "a large batch": (PLAIN, "-c 4096 -b 2048 -ub 2048"),
    "no flash attention": (PLAIN, "-c 4096 -fa off"),
    "embedding": (PLAIN, "-c 2048 --embedding --pooling mean"),
    "reranking": (PLAIN, "-c 2048 --rerank"),
    "a large vocabulary, embedding": (transformer(words=20_000), "-c 2048 --embedding"),
    "f16 weights": (transformer(kind="F16"), "-c 1024"),
    "no gate": (
        transformer("starcoder2", attention__layer_norm_epsilon=1e-5)
        .without(*(f"blk.{layer}.ffn_gate.weight" for layer in range(4)))
        .with_tensors(
            {
                f"{name}.bias": ((size,), "F32")
                for name, size in [
                    ("output_norm", 256),
                    *((f"blk.{layer}.{norm}_norm", 256) for layer in range(4) for norm in ("attn", "ffn")),
                    *((f"blk.{layer}.attn_output", 256) for layer in range(4)),
                    *((f"blk.{layer}.ffn_down", 256) for layer in range(4)),
                    *((f"blk.{layer}.ffn_up", 768) for layer in range(4)),
                ]
            }
        ),
        "-c 4096",
    ),
    "windows": (files.gemma3(), "-c 8192"),
    "windows, two slots": (files.gemma3(), "-c 8192 -np 2 -ub 256"),
    "windows, kept whole": (files.gemma3(), "-c 8192 --swa-full"),
    "windows, no flash attention": (files.gemma3(), "-c 2048 -np 1 -fa off"),
    "experts": (MIXTURE, "-c 4096"),
    "narrow experts": (files.mixture(inner=96), "-c 4096"),
    "latent attention": (files.latent_attention(), "-c 4096"),
    "latent attention, q8_0": (files.latent_attention(), "-c 4096 -ctk q8_0 -ctv q8_0"),
    "recurrent": (files.mamba2(), ""),
    "recurrent, one slot": (files.mamba2(), "-np 1"),
    "hybrid": (files.hybrid(), "-c 4096"),
    "hybrid, three slots": (files.hybrid((1, 3)), "-c 8192 -np 3"),
    "encoder": (files.encoder(), "--embedding"),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_buffer_is_as_predicted(name: str, llama_server: Path, written: WritesModel) -> None:
    file, words = SUBJECTS[name]
    path = written(file)
    prediction = predict([header(path)], read_options(words.split(), {}))
    with running(llama_server, path, words.split()) as server:
        buffers = server.buffers
    weights = prediction.host_bytes(HOST_ONLY).mapped_bytes
    assert buffers.weights == pytest.approx(weights / MIB, abs=LOGGED_MIB)
    assert buffers.cache == pytest.approx(sum(prediction.cache) / MIB, abs=2 * LOGGED_MIB)
    assert buffers.state == pytest.approx(sum(prediction.state) / MIB, abs=LOGGED_MIB)
    computed = prediction.compute.host_layers_bytes / MIB
    assert buffers.compute == pytest.approx(computed, rel=COMPUTE_TOLERANCE), computed / buffers.compute


def test_what_is_written_is_what_the_values_say(written: WritesModel) -> None:
    """The other tests of the sums use values; this one ties them to the files."""
    for file in (PLAIN, files.gemma3(), MIXTURE, files.latent_attention(), files.hybrid(), files.encoder()):
        from_file = predict([header(written(file))], read_options([], {}))
        from_value = predict([file.value()], read_options([], {}))
        assert from_file.total_host_bytes(HOST_ONLY) == from_value.total_host_bytes(HOST_ONLY)
        assert (from_file.shape, from_file.run) == (from_value.shape, from_value.run)


def resident_bytes(pid: int) -> tuple[int, int]:
    """All of it, and what is the process's own."""
    status = Path(f"/proc/{pid}/status").read_text()
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", status, re.MULTILINE)}
    return sizes["VmRSS"], sizes["RssAnon"]


WORKING: dict[str, tuple[File, str, str, dict[str, Any]]] = {
    "writing": (PLAIN, "-c 8192 -np 2", "/completion", {"prompt": PROMPT, "n_predict": 2}),
    "embedding": (PLAIN, "-c 2048 --embedding --pooling mean", "/v1/embeddings", {"input": PROMPT}),
    "copied weights": (PLAIN, "-c 8192 -np 2 -lm none", "/completion", {"prompt": PROMPT, "n_predict": 2}),
    "recurrent": (files.mamba2(), "-np 4", "/completion", {"prompt": PROMPT, "n_predict": 2}),
}


@pytest.mark.parametrize("name", WORKING)
def test_a_process_takes_what_was_predicted_once_it_has_worked(
    name: str, llama_server: Path, written: WritesModel
) -> None:
    file, words, path, body = WORKING[name]
    model = written(file)
    prediction: Prediction = predict([header(model)], read_options(words.split(), {}))
    with running(llama_server, model, words.split()) as server:
        answer = ask(server.url + path, body)
        assert answer.status == 200, answer.body
        resident, anonymous = resident_bytes(server.pid)
    host = prediction.host_bytes(HOST_ONLY)
    # The program's own pages are counted with the process in the prediction, and with the file by the
    # system, and not all of a buffer is touched: so up to a quarter too much, and next to nothing too little.
    assert resident < 1.02 * host.total < 1.25 * 1.02 * resident
    assert anonymous < 1.02 * host.anonymous_bytes
