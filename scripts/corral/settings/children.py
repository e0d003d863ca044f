"""What our child processes inherit: the operator's environment without secrets and without our settings.

A llama-server needs PATH, library paths and whatever CUDA reads, and may have LLAMA_ARG_* defaults of
the operator's. It needs no key of anybody's: its environment can be read by every process of the user.
Our own variables go too, so that no PORT or THREADS means something to a program it was not meant for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from corral.settings.declarations import DECLARATIONS, UNSUPPORTED_VARIABLES
from corral.settings.flags import MANAGED_VARIABLES

# As a word's end, wherever the word stands: API_KEY, API_KEY2 and API_KEY_PROD, but not KEYBOARD. Tokens
# are also what models are measured by, so that word counts in the last place only.
_SECRET = re.compile(
    r"((KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?[0-9]*(_|\Z)|TOKENS?[0-9]*\Z)", re.IGNORECASE
)
# Still true for a child; the fleet narrows the first one down to the cards it has chosen.
_PASSED_ON = frozenset({"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"})
_OURS = frozenset(name for row in DECLARATIONS for name in row.variables) - _PASSED_ON
_DROPPED = _OURS | frozenset(UNSUPPORTED_VARIABLES) | MANAGED_VARIABLES


def inheritable(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environ.items() if name not in _DROPPED and not _SECRET.search(name)
    }
