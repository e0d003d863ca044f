"""Layers go where llama-server would put them."""

from __future__ import annotations

import pytest

from corral.policy.memory.layout import HOST_ONLY, Layout, wanted_layout
from corral.policy.memory.options import read_options


def places(gpu_layers: int, shares: tuple[float, ...], layers: int = 4) -> str:
    """One character per layer and one for the output: the number of the GPU, or h."""
    devices = Layout(gpu_layers, shares).places(layers)
    return "".join("h" if device is None else str(device) for device in devices)


@pytest.mark.parametrize(
    ("gpu_layers", "expected"),
    [(0, "hhhhh"), (1, "hhhh0"), (2, "hhh00"), (4, "h0000"), (5, "00000"), (99, "00000")],
)
def test_layers_are_taken_from_the_end_and_the_output_first(gpu_layers: int, expected: str) -> None:
    assert places(gpu_layers, (1.0,)) == expected


@pytest.mark.parametrize(
    ("gpu_layers", "shares", "expected"),
    [
        (9, (1.0, 1.0), "000001111"),
        (9, (3.0, 1.0), "000000011"),
        (9, (30.0, 10.0), "000000011"),
        (9, (0.0, 1.0), "111111111"),
        (9, (1.0, 0.0), "000000000"),
        (9, (1.0, 1.0, 1.0), "000111222"),
        (5, (1.0, 2.0), "hhhh00111"),
        (9, (0.0, 0.0), "000000000"),
    ],
)
def test_several_gpus_get_their_shares_in_order(
    gpu_layers: int, shares: tuple[float, ...], expected: str
) -> None:
    assert places(gpu_layers, shares, layers=8) == expected


def test_without_a_gpu_everything_is_on_the_host() -> None:
    assert places(99, ()) == "hhhhh"
    assert HOST_ONLY.places(4) == (None,) * 5


@pytest.mark.parametrize(
    ("words", "devices", "layout"),
    [
        ("", 1, Layout(33, (1.0,))),
        ("-ngl 20", 1, Layout(20, (1.0,))),
        ("-ngl 99", 1, Layout(33, (1.0,))),
        ("-ngl 0", 1, Layout(0, (1.0,))),
        ("", 2, Layout(33, (1.0, 1.0))),
        ("-ts 3,1", 2, Layout(33, (3.0, 1.0))),
        ("-ts 3", 2, Layout(33, (3.0, 0.0))),
        ("-ts 3,1,1", 2, Layout(33, (3.0, 1.0))),
        ("-sm none", 2, Layout(33, (1.0, 0.0))),
        ("-dev none", 2, HOST_ONLY),
        ("-ngl 99", 0, HOST_ONLY),
    ],
)
def test_the_options_ask_for_a_layout(words: str, devices: int, layout: Layout) -> None:
    assert wanted_layout(read_options(words.split(), {}), 32, devices) == layout
