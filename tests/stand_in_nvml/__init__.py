"""Builds the stand-in driver and writes its world: GPUs, foreign use, what processes hold.

world = NvmlWorld(tmp_path)
world.gpu("GPU-a", total_mib=24_000)
subprocess.run(..., env=os.environ | world.environment())
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"


def build() -> Path:
    """The folder that holds the compiled library; compiled once for each state of its source."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"corral-stand-in-nvml-{digest}"
    if not (folder / LIBRARY).exists():
        folder.mkdir(exist_ok=True)
        draft = folder / f"{LIBRARY}.new"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", draft, SOURCE], check=True)
        draft.rename(folder / LIBRARY)
    return folder


@dataclass
class NvmlWorld:
    folder: Path
    lines: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "use").mkdir(parents=True, exist_ok=True)
        self._write()

    def gpu(self, uuid: str, total_mib: int, foreign_mib: int = 0, mig_of: int | None = None) -> None:
        """Put in a device, or change it."""
        self.lines[uuid] = f"{uuid} {total_mib} {foreign_mib}" + (
            "" if mig_of is None else f" mig-of {mig_of}"
        )
        self._write()

    def remove(self, uuid: str) -> None:
        del self.lines[uuid]
        self._write()

    def options(self, *words: str) -> None:
        self._replace("options", " ".join(words))

    def use(self, pid: int, mib: dict[str, int]) -> None:
        """What a process holds of which device."""
        self._replace(f"use/{pid}", "".join(f"{uuid} {size}\n" for uuid, size in mib.items()))

    def environment(self) -> dict[str, str]:
        return {"STAND_IN_NVML": str(self.folder), "LD_LIBRARY_PATH": str(build())}

    def _write(self) -> None:
        self._replace("gpus", "\n".join(self.lines.values()) + "\n")

    def _replace(self, name: str, text: str) -> None:
        draft = self.folder / f"{name}.new"
        draft.write_text(text)
        draft.rename(self.folder / name)
