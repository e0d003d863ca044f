"""The table of llama-fit-params: as it comes, between log lines, and as it must not be believed."""

from __future__ import annotations

import pytest

from corral.formats.fit_print import TEXT_CHARS_MAX, DeviceRow, FitPrintError, parse

MIB = 1 << 20
LOG = (
    "ggml_cuda_init: found 1 CUDA devices (Total VRAM: 24080 MiB):\n"
    "  Device 0: some GPU, compute capability 8.9, VMM: yes, VRAM: 24080 MiB\n"
    "0.00.001.927 I llama_fit_params: printing estimated memory in MiB to stdout"
    " (device, model, context, compute) ...\n"
)
ON_A_GPU = "CUDA0 4096 512 300 \nHost 306 0 9 \n"


def test_each_device_has_a_row_and_the_host_the_last() -> None:
    said = parse("CUDA0 4096 512 300 \nCUDA1 4000 500 200\nHost 306 0 9 \n")
    assert said.devices == (
        DeviceRow("CUDA0", 4096 * MIB, 512 * MIB, 300 * MIB),
        DeviceRow("CUDA1", 4000 * MIB, 500 * MIB, 200 * MIB),
    )
    assert said.host == DeviceRow("Host", 306 * MIB, 0, 9 * MIB)
    assert said.host.total_bytes == 315 * MIB


def test_a_machine_without_gpus_has_the_hosts_row_alone() -> None:
    assert parse("Host 0 0 4 \n") == ((), DeviceRow("Host", 0, 0, 4 * MIB))


@pytest.mark.parametrize(
    "text",
    [
        LOG + ON_A_GPU,
        ON_A_GPU + "~llama_context: CUDA0 compute buffer size is 300.00 MiB\n",
        "warning: no usable GPU found, --gpu-layers option will be ignored\n\n" + ON_A_GPU,
        ON_A_GPU.rstrip(),
    ],
    ids=["a log before it", "a log after it", "a warning", "no end of the line"],
)
def test_log_lines_around_the_table_are_passed_over(text: str) -> None:
    assert parse(text) == parse(ON_A_GPU)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("", "no table"),
        (LOG, "no table"),
        ("error: invalid argument: --fit-print\n", "no table"),
        ("Host 1 2\n", "no table"),
        ("Host 1 2 3 4\n", "no table"),
        ("Host -1 2 3\n", "no table"),
        ("Host 1.5 2 3\n", "no table"),
        ("Host 1 2 9999999999\n", "no table"),
        ("Host ١ ٢ ٣\n", "no table"),
        ("0 1 2 3\n", "no table"),
        ("CUDA0 1 2 3\n", "not one of devices and then Host"),
        ("Host 1 2 3\nCUDA0 1 2 3\n", "not one of devices and then Host"),
        ("Host 1 2 3\nHost 1 2 3\n", "not one of devices and then Host"),
        ("CUDA0 1 2 3\nCUDA0 1 2 3\nHost 1 2 3\n", "not one of devices and then Host"),
        ("CUDA0 1 2 3\nand by the way\nHost 1 2 3\n", "torn apart"),
        ("".join(f"GPU{n} 1 2 3\n" for n in range(257)) + "Host 1 2 3\n", "not one of devices"),
        (ON_A_GPU + "x" * TEXT_CHARS_MAX, "more than 65536 characters"),
    ],
    ids=lambda value: value[:40].strip() or "nothing",
)
def test_anything_else_is_no_table(text: str, trouble: str) -> None:
    with pytest.raises(FitPrintError, match=trouble):
        parse(text)


def test_a_table_cut_short_anywhere_is_the_same_or_none() -> None:
    """A process may be killed in the middle of a row."""
    whole = "CUDA0 4096 512 300\nHost 306 10 9"
    for end in range(len(whole)):
        with pytest.raises(FitPrintError):
            parse(whole[:end])
