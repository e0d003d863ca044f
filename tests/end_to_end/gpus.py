"""A machine with GPUs for tests of the whole: the gateway's real process, a stand-in driver and engine.

The engine takes memory of the driver's GPUs while it loads, and dies as a real one would if there is
not enough; the models' files are large, and empty. So what the gateway predicts, reads, decides, passes
on and measures is all its own, and whatever it gets wrong shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.end_to_end.talk import CHAT, chat, content, metric, model_status
from tests.policy.memory.files import MIB, transformer
from tests.stand_in_launcher import read_events
from tests.stand_in_nvml import NvmlWorld
from tests.support import Corral
from tests.waiting import wait_until

TEXT = "token0 token1 token2 token3 token4 "

# With a context of 4096 tokens: 367 MiB of weights in 8 layers and the output, 64 of cache, 53 to compute
# in, and 320 for the driver's part. An unlearned prediction is given a tenth more.
MODEL = transformer(layers=8, width=2048, heads=16, kv_heads=4, head=128, feed_forward=5632)
LAYERS = 9
PREDICTED_MIB = 804
RESERVED_MIB = 884
# A GPU for one such model, and one for two: of each, a 32nd part is left alone.
ROOM_FOR_ONE_MIB = 1000
ROOM_FOR_TWO_MIB = 2000


def takes(mib: int, *flags: str, **faults: Any) -> dict[str, Any]:
    """A model's entry: how much its process takes of the GPUs, what else is wrong with it, more flags."""
    return {"flags": ["--stand-in", json.dumps({"vram_mib": mib, **faults}), *flags]}


class Machine:
    """A gateway on it, started with the machine; stopped by whoever made it."""

    def __init__(
        self,
        directory: Path,
        engine: Path,
        gpus: Mapping[str, int],
        models: Mapping[str, dict[str, Any]],
        *,
        driver: tuple[str, ...] = (),
        system: Mapping[str, Any] | None = None,
        gpu: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.world = NvmlWorld(directory / "world")
        for uuid, mib in gpus.items():  # MIG-…: a part of the first card
            self.world.gpu(uuid, total_mib=mib, mig_of=0 if uuid.startswith("MIG-") else None)
        self.world.options(*driver)
        self._journal = directory / "events"
        files = directory / "data" / "models"
        files.mkdir(parents=True)
        for name in models:
            MODEL.write(files / f"{name}.gguf")
        self.corral = Corral(
            directory,
            engine,
            environment={
                **self.world.environment(),
                "STAND_IN_LOG": str(self._journal),
                **(environment or {}),
            },
            config={
                "system": {"max_concurrent_models": 9, **(system or {})},
                "server_pool": {"size": 9},
                "gpu": {"monitoring_interval": 0.1, **(gpu or {})},
                "models": {name: {"model_path": f"{name}.gguf", **entry} for name, entry in models.items()},
            },
        )

    def chat(self, model: str) -> None:
        """One request that the model answers."""
        assert content(self.corral.ask(CHAT, chat(model))) == TEXT

    def refusal(self, model: str) -> tuple[int, str, str]:
        """Status, code and message of a request that is refused."""
        answer = self.corral.ask(CHAT, chat(model))
        error = answer.json()["error"]
        return answer.status, error["code"], error["message"]

    def states(self, *models: str) -> list[str]:
        return [model_status(self.corral, model)["status"] for model in models]

    def vram_mib(self, model: str) -> int | None:
        entry = self.corral.ask("/v1/models/status").json()["models"][model]
        size: int | None = entry.get("vram_mb")
        return size

    def wait_until_measured(self, **sizes_mib: int) -> None:
        def measured() -> bool:
            return {model: self.vram_mib(model) for model in sizes_mib} == sizes_mib

        self.wait_for(f"what they take is known to be {sizes_mib}", measured)

    def gpu_mib(self, what: str, uuid: str) -> int:
        """One of router_gpu_memory_{used,total,reserved}_bytes, in MiB."""
        return round(metric(self.corral, f"router_gpu_memory_{what}_bytes", gpu=uuid) / MIB)

    def wait_for(self, what: str, fact: Callable[[], object]) -> None:
        try:
            wait_until(fact, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.corral.log_text}") from None

    # What the engine has recorded ----------------------------------------------------------------

    def events(self, event: str, model: str) -> list[dict[str, Any]]:
        return [each for each in read_events(self._journal, event) if each["alias"] == model]

    def starts(self, model: str) -> int:
        return len(self.events("start", model))

    def gpus_of(self, model: str) -> str:
        """The CUDA_VISIBLE_DEVICES of its newest process."""
        gpus: str = self.events("start", model)[-1]["env"]["CUDA_VISIBLE_DEVICES"]
        return gpus

    def flag(self, model: str, name: str) -> str | None:
        """What its newest process was told with this flag."""
        argv: list[str] = self.events("start", model)[-1]["argv"]
        return argv[argv.index(name) + 1] if name in argv else None
