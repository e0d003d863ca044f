"""Which GPUs may be seen: CUDA's reading of its variable, and the container runtimes' of theirs."""

from __future__ import annotations

import pytest

from corral.settings.devices import visible_devices

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"


@pytest.mark.parametrize(
    ("cuda", "devices"),
    [
        ("0", ("0",)),
        ("1, 0", ("1", "0")),
        (f"{UUID},{MIG}", (UUID, MIG)),
        ("GPU-8932", ("GPU-8932",)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0,-1,1", ("0",)),
        ("0,x,1", ("0",)),
        ("0,0", ("0",)),
    ],
)
def test_cuda_devices_count_up_to_the_first_that_is_none(cuda: str, devices: tuple[str, ...]) -> None:
    assert visible_devices(cuda, None) == devices


@pytest.mark.parametrize(
    ("nvidia", "devices"),
    [
        (None, None),
        ("all", None),
        ("void", None),
        ("none", ()),
        ("0", None),
        ("0,1", None),
        (UUID, (UUID,)),
        (f"{UUID}, {MIG}", (UUID, MIG)),
        (f"{UUID},1", None),
        ("/var/run/nvidia-container-devices", None),
    ],
)
def test_the_container_runtime_limits_by_uuid_only(
    nvidia: str | None, devices: tuple[str, ...] | None
) -> None:
    assert visible_devices(None, nvidia) == devices


def test_cuda_is_asked_before_the_runtime() -> None:
    assert visible_devices("1", "none") == ("1",)
    assert visible_devices("", UUID) == ()
