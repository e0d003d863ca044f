"""Which files are the same model, and which are another."""

from __future__ import annotations

from corral.policy.fingerprint import FileFacts, fingerprint

MODEL = FileFacts("qwen.gguf", 4_000_000_000, 1_700_000_000_000_000_001)
PROJECTOR = FileFacts("mmproj-qwen.gguf", 600_000_000, 1_700_000_000_000_000_001)


def test_a_fingerprint_is_a_short_plain_text_and_the_same_in_every_run() -> None:
    assert fingerprint([MODEL]) == "b32b13ebaeb8798369cb5826bb05d57ab05df9db522065523f111267b9b30cda"


def test_the_order_in_which_files_are_named_does_not_matter() -> None:
    assert fingerprint([MODEL, PROJECTOR]) == fingerprint([PROJECTOR, MODEL])


def test_another_name_size_or_time_of_change_is_another_file() -> None:
    sets = [
        [],
        [MODEL],
        [MODEL, PROJECTOR],
        [MODEL._replace(name="qwen2.gguf")],
        [MODEL._replace(size_bytes=4_000_000_001)],
        [MODEL._replace(modified_ns=MODEL.modified_ns + 1)],
    ]
    assert len({fingerprint(files) for files in sets}) == len(sets)


def test_a_name_that_is_no_text_is_a_name_all_the_same() -> None:
    odd = [FileFacts(name, 1, 1) for name in ("m\udcff.gguf", "m\udcfe.gguf", 'm".gguf', "模型.gguf")]
    assert len({fingerprint([file]) for file in odd}) == 4
