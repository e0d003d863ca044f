"""The real llama-fit-params beside our sums for the same question: on models that we know, they agree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from corral.drivers.fit_params import beside
from corral.formats.fit_print import parse
from corral.policy.memory import predict, read_options, second_opinion
from tests.policy.memory.files import File, transformer
from tests.real.test_memory_prediction import SUBJECTS, header

# It rounds down, to whole MiB, and our sum for a batch is within a tenth: so next to nothing may be left.
FOUND_MAX = 1.03

MODELS: dict[str, tuple[File, str]] = SUBJECTS | {
    "a large vocabulary": (transformer(words=60_000), "-c 4096 -np 2"),
    "rearranged weights": (transformer(kind="Q4_0"), "-c 4096 -np 1"),
    "weights as they are": (transformer(kind="Q4_0"), "-c 4096 -np 1 --no-repack"),
    "experts on the host": (SUBJECTS["experts"][0], "-c 4096 -np 1 --cpu-moe"),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_finds_nothing_that_was_not_predicted(name: str, llama_server: Path, tmp_path: Path) -> None:
    program = beside(llama_server)
    assert program is not None
    file, words = MODELS[name]
    path = tmp_path / "model.gguf"
    file.write(path)
    prediction = predict([header(path)], read_options(words.split(), {}))
    question = second_opinion.question(prediction, str(path), 0)
    asked = subprocess.run([program, *question], capture_output=True, text=True, timeout=20)
    assert asked.returncode == 0, asked.stderr
    judged = second_opinion.judge(prediction, 0, parse(asked.stdout + asked.stderr))
    assert judged.predicted_bytes <= judged.measured_bytes <= FOUND_MAX * judged.predicted_bytes
