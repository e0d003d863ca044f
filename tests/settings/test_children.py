"""What a child process inherits: much of the environment, no secret, and nothing that means Corral."""

from __future__ import annotations

import pytest

from corral.settings import DECLARATIONS, UNSUPPORTED_VARIABLES, children_environment
from corral.settings.children import inheritable
from tests.settings.desk import Desk

KEPT = [
    "PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "LLAMA_ARG_FLASH_ATTN",
    "LLAMA_ARG_CACHE_TYPE_K",
    "KEYBOARD",
    "TOKENIZERS_PARALLELISM",
    "TOKEN_DELAY_S",
]
DROPPED = [
    "API_KEY",
    "LLAMA_API_KEY",
    "HF_TOKEN",
    "aws_secret_access_key",
    "DATABASE_PASSWORD",
    "CLIENT_SECRETS",
    "ANTHROPIC_API_KEY_PROD",
    "OPENAI_API_KEY2",
    "DB_PASSWORD_RO",
    "SMTP_PASSWD",
    "GPG_PASSPHRASE",
    "VAULT_CREDENTIAL",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "REDIS_URL",
    "GATEWAY_PORT",
    "PORT",
    "THREADS",
    "LLAMA_SERVER_PATH",
    "LLAMA_ARG_HOST",
    "LLAMA_ARG_PORT",
    "LLAMA_ARG_MODEL",
    "LLAMA_ARG_API_PREFIX",
]


@pytest.mark.parametrize("name", KEPT)
def test_what_a_child_needs_is_kept(name: str) -> None:
    assert inheritable({name: "value"}) == {name: "value"}


@pytest.mark.parametrize("name", DROPPED)
def test_secrets_and_our_own_variables_are_dropped(name: str) -> None:
    assert inheritable({name: "value"}) == {}


def test_no_declared_variable_reaches_a_child_but_the_visible_devices() -> None:
    names = {name for row in DECLARATIONS for name in row.variables} | set(UNSUPPORTED_VARIABLES)
    kept = inheritable(dict.fromkeys(names, "1"))
    assert set(kept) == {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}


def test_children_get_what_dotenv_adds_and_the_environment_wins(desk: Desk) -> None:
    settings = desk.load(
        environ={"LLAMA_ARG_MLOCK": "1", "API_KEY": "sk-environment"},
        dotenv="LLAMA_ARG_MLOCK=0\nLLAMA_ARG_NUMA=distribute\nMY_TOKEN=hidden\n",
    )
    assert children_environment(settings) == {
        "HOME": str(desk.home),
        "PATH": "",
        "LLAMA_ARG_MLOCK": "1",
        "LLAMA_ARG_NUMA": "distribute",
    }


def test_what_a_child_gets_is_its_own_copy(desk: Desk) -> None:
    settings = desk.load()
    children_environment(settings)["LATER"] = "1"
    assert "LATER" not in children_environment(settings)
