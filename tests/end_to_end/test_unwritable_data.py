"""A data directory that can't be written to: it costs the logs and what would be learnt, and nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, chat, content
from tests.support import KEY, ROOT, Corral
from tests.waiting import wait_until

# Nobody can make anything there, not even root, for whom permissions are none.
UNWRITABLE = "/proc"


def test_it_serves_all_the_same(start_corral: StartCorral, demo_files: Path) -> None:
    own = {"DATA_DIR": UNWRITABLE, "BASE_MODELS_PATH": str(demo_files), "API_KEY": KEY}
    corral = start_corral(program=ROOT / "entrypoint.sh", environment=own)
    assert content(corral.ask(CHAT, chat()))
    for what in ("/proc/logs/api_access.log", "/proc/logs/_boot", "/proc/logs/llama-demo", "/proc/state"):
        wait_until(partial(is_said, corral, what), f"it is told that {what} is lost")
    assert "ERROR" not in corral.log_text


def is_said(corral: Corral, what: str) -> bool:
    return what in corral.log_text
