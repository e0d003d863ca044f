"""The question that llama-fit-params is asked, and what is made of its answer."""

from __future__ import annotations

import pytest

from corral.formats.fit_print import DeviceRow, FitPrint
from corral.formats.learned import Learned
from corral.policy.memory import HOST_ONLY, Layout, Prediction, predict, read_options, second_opinion
from tests.policy.memory.files import MIB, transformer

FILE = transformer(layers=6, width=1024, heads=16, kv_heads=4, head=64, feed_forward=2816, words=60_000)
LAYERS = 7
ON_ONE = Layout(LAYERS, (1.0,))
HOST = DeviceRow("Host", 306 * MIB, 0, 9 * MIB)

# On one GPU, with a context of 4096 tokens: six layers and the output, keys and values, and what a batch
# takes of which each token wants an output, with the mask of its slot's 2048 cells.
WEIGHTS, CACHE = 137_193_472, 24 * MIB
COMPUTE = 4 * 512 * (60_000 + 2 * 1024) + 2 * 512 * 2048
TOKEN_EMBEDDINGS = 60_000 * 1024 * 34 // 32


def prediction(words: str = "-c 4096 -np 2") -> Prediction:
    return predict([FILE.value()], read_options(words.split(), {}))


def on_gpu(model: int = 0, context: int = 0, compute: int = 0, devices: int = 1) -> FitPrint:
    rows = (DeviceRow(f"CUDA{number}", model, context, compute) for number in range(devices))
    return FitPrint(tuple(rows), HOST)


def on_host(model: int = 0, context: int = 0, compute: int = 0) -> FitPrint:
    return FitPrint((), DeviceRow("Host", model, context, compute))


# The question -------------------------------------------------------------------------------------


def test_the_question_names_all_that_changes_the_answer() -> None:
    assert second_opinion.question(prediction(), "/m.gguf", LAYERS) == (
        *("--fit-print", "on", "-m", "/m.gguf", "-ngl", "7", "-c", "4096", "-np", "2"),
        *("-b", "2048", "-ub", "512", "-ctk", "f16", "-ctv", "f16", "-fa", "auto"),
    )


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("-c 8192", ["-c", "8192"]),
        ("", ["-c", "0"]),
        ("-np 8", ["-np", "8"]),
        ("-np -1", ["-np", "4"]),
        ("-b 1024 -ub 256", ["-b", "1024", "-ub", "256"]),
        ("-ctk q8_0 -ctv q4_0", ["-ctk", "q8_0", "-ctv", "q4_0"]),
        ("-fa off", ["-fa", "off"]),
        ("-fa on", ["-fa", "auto"]),
        ("-nkvo", ["--no-kv-offload"]),
        ("--no-repack", ["--no-repack"]),
        ("--no-op-offload", ["--no-op-offload"]),
        ("--swa-full", ["--swa-full"]),
        (r"-ot blk\.1\.=CPU,blk\.2\.=CUDA0 -ot x=CPU", ["-ot", r"blk\.1\.=CPU,blk\.2\.=CUDA0,x=CPU"]),
        ("--n-cpu-moe 1", ["-ot", r"blk\.0\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_server_is_told_is_asked_about(words: str, asked: list[str]) -> None:
    question = " ".join(second_opinion.question(prediction(words), "/m.gguf", LAYERS))
    assert " ".join(asked) in question


@pytest.mark.parametrize(
    "words",
    ["--embedding --pooling mean", "--kv-unified", "--metrics --alias a", "--cache-ram 0", "--mmproj x.gguf"],
)
def test_what_only_a_server_knows_is_left_out(words: str) -> None:
    plain = second_opinion.question(prediction(), "/m.gguf", LAYERS)
    assert second_opinion.question(prediction(f"-c 4096 -np 2 {words}"), "/m.gguf", LAYERS) == plain


# The answer ---------------------------------------------------------------------------------------


def test_what_it_finds_beyond_our_sum_is_added() -> None:
    predicted = prediction().total_device_bytes(ON_ONE)
    for more in (0, 1, 100 * MIB):
        judged = second_opinion.judge(prediction(), LAYERS, on_gpu(WEIGHTS, CACHE, COMPUTE + more))
        assert judged == Learned(predicted + more, predicted)


def test_an_output_for_every_token_of_a_batch_is_no_news() -> None:
    """117 MiB of the answer are such outputs, which a server with two slots never allocates."""
    assert prediction().device_bytes(ON_ONE)[0].compute < 30 * MIB < COMPUTE
    judged = second_opinion.judge(prediction(), LAYERS, on_gpu(WEIGHTS, CACHE, COMPUTE))
    assert judged.measured_bytes == judged.predicted_bytes


def test_less_than_our_sum_lowers_nothing() -> None:
    predicted = prediction().total_device_bytes(ON_ONE)
    assert second_opinion.judge(prediction(), LAYERS, on_gpu()) == Learned(predicted, predicted)


def test_slots_that_share_a_cache_are_compared_with_what_it_takes_them_for() -> None:
    together = prediction("-c 4096 -np 2 --kv-unified")
    predicted = together.total_device_bytes(ON_ONE)
    judged = second_opinion.judge(together, LAYERS, on_gpu(WEIGHTS, CACHE, COMPUTE + 50 * MIB))
    assert judged == Learned(predicted + 50 * MIB, predicted)


def test_without_gpu_layers_the_hosts_row_counts() -> None:
    predicted = prediction().total_host_bytes(HOST_ONLY)
    said = on_host(WEIGHTS + TOKEN_EMBEDDINGS, CACHE, COMPUTE + 30 * MIB)
    assert second_opinion.judge(prediction(), 0, said) == Learned(predicted + 30 * MIB, predicted)
    assert second_opinion.judge(prediction(), 0, on_host()) == Learned(predicted, predicted)


@pytest.mark.parametrize("devices", [0, 2])
def test_an_answer_for_another_machine_is_not_believed(devices: int) -> None:
    with pytest.raises(second_opinion.Unbelievable, match=f"given one GPU and sees {devices}"):
        second_opinion.judge(prediction(), LAYERS, on_gpu(WEIGHTS, devices=devices))


@pytest.mark.parametrize("layers", [LAYERS, 0], ids=["on a GPU", "on the host"])
def test_an_answer_of_over_four_times_the_prediction_is_not_believed(layers: int) -> None:
    said = FitPrint((DeviceRow("CUDA0", 9000 * MIB, 0, 0),), DeviceRow("Host", 9000 * MIB, 0, 0))
    said = said if layers else said._replace(devices=())
    with pytest.raises(second_opinion.Unbelievable, match="it says 9000 MiB where our sum is"):
        second_opinion.judge(prediction(), layers, said)


@pytest.mark.parametrize(
    ("learned", "factor"),
    [
        (None, 1.0),
        (Learned(150, 100), 1.5),
        (Learned(100, 100), 1.0),
        (Learned(50, 100), 1.0),
        (Learned(400, 100), 4.0),
        (Learned(401, 100), 1.0),
        (Learned(100, 0), 1.0),
    ],
    ids=["never asked", "more", "the same", "less", "as much as is believed", "nonsense", "damaged"],
)
def test_a_prediction_is_scaled_up_and_never_down(learned: Learned | None, factor: float) -> None:
    assert second_opinion.scale(learned) == factor
