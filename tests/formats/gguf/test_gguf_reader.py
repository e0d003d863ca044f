"""The GGUF reader: every window size, cut files, hostile headers, noise."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from corral.formats import gguf
from corral.formats.gguf import GgufError, Omitted, ValueType
from corral.formats.gguf import reader as reader_module
from corral.formats.gguf.tensor_types import NUMBER_OF
from tests.formats.gguf.crafting import SMALL, entry, file, pair, read_bytes, text

UINT32, STRING, ARRAY = ValueType.UINT32, ValueType.STRING, ValueType.ARRAY


@pytest.mark.parametrize("window_bytes", [*range(1, 40), 64, 1000])
def test_every_window_size_reads_the_same(window_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_bytes(SMALL)
    monkeypatch.setattr(reader_module, "WINDOW_BYTES", window_bytes)
    assert read_bytes(SMALL) == whole


def test_a_driver_that_reads_less_than_asked_is_asked_again() -> None:
    assert gguf.read(
        lambda offset, length: SMALL[offset : offset + min(length, 70)], len(SMALL)
    ) == read_bytes(SMALL)


def test_a_file_cut_anywhere_is_refused() -> None:
    # The last 12 bytes are padding, which holds nothing.
    for length in range(len(SMALL) - 12):
        with pytest.raises(GgufError):
            read_bytes(SMALL[:length])
    assert read_bytes(SMALL[:-12]).tensors == read_bytes(SMALL).tensors


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    with pytest.raises(GgufError, match="cut while being read"):
        read_bytes(SMALL[:100], size_bytes=len(SMALL))


def test_a_file_without_its_last_bytes_says_how_many_are_missing() -> None:
    with pytest.raises(GgufError, match=r"cut short: 7 bytes of its tensors are missing \(at byte \d+\)"):
        read_bytes(SMALL[:-19])


@pytest.mark.parametrize(
    ("kind", "packed", "value"),
    [
        (ValueType.UINT8, b"\xff", 255),
        (ValueType.INT8, b"\xff", -1),
        (ValueType.UINT16, b"\x01\x02", 513),
        (ValueType.INT16, b"\xfe\xff", -2),
        (ValueType.UINT32, b"\xff\xff\xff\xff", 4_294_967_295),
        (ValueType.INT32, b"\xff\xff\xff\xff", -1),
        (ValueType.FLOAT32, struct.pack("<f", 1.5), 1.5),
        (ValueType.BOOL, b"\x01", True),
        (ValueType.STRING, text("héllo"), "héllo"),
        (ValueType.STRING, text(b"\xff\xfe"), "\ufffd\ufffd"),
        (ValueType.UINT64, b"\xff" * 8, 2**64 - 1),
        (ValueType.INT64, b"\xff" * 8, -1),
        (ValueType.FLOAT64, struct.pack("<d", 0.1), 0.1),
        (ValueType.ARRAY, struct.pack("<IQ3H", ValueType.UINT16, 3, 1, 2, 3), (1, 2, 3)),
        (ValueType.ARRAY, struct.pack("<IQ2?", ValueType.BOOL, 2, True, False), (True, False)),
        (ValueType.ARRAY, struct.pack("<IQ", ValueType.INT32, 0), ()),
    ],
    ids=lambda value: value.name if isinstance(value, ValueType) else None,
)
@pytest.mark.parametrize("version", [2, 3])
def test_every_type_of_value_is_understood(kind: int, packed: bytes, value: Any, version: int) -> None:
    found = read_bytes(file(pair("x", kind, packed), keys=1, version=version))
    assert (found.version, dict(found.metadata)) == (version, {"x": value})


def test_small_numeric_arrays_are_kept_and_big_ones_only_counted() -> None:
    kept = struct.pack("<IQ1024i", ValueType.INT32, 1024, *range(1024))
    counted = struct.pack("<IQ1025i", ValueType.INT32, 1025, *range(1025))
    found = read_bytes(file(pair("kept", ARRAY, kept), pair("counted", ARRAY, counted), keys=2))
    assert found.metadata["kept"] == tuple(range(1024))
    assert found.metadata["counted"] == Omitted(ValueType.INT32, 1025)


def test_a_very_long_string_is_only_measured() -> None:
    found = read_bytes(file(pair("x", STRING, text("y" * 65_537)), pair("z", STRING, text("end")), keys=2))
    assert found.metadata["x"] == Omitted(STRING, 65_537, is_array=False)
    assert found.metadata["z"] == "end"


def test_a_large_vocabulary_is_stepped_over_in_windows() -> None:
    tokens = [f"token {number}" * (1 + number % 3) for number in range(150_000)]
    data = gguf.write({"tokenizer.ggml.tokens": tokens, "after": "it"}, [])
    asked = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    found = gguf.read(read_at, len(data))
    assert found.metadata == {"tokenizer.ggml.tokens": Omitted(STRING, 150_000), "after": "it"}
    assert max(asked) == reader_module.WINDOW_BYTES
    assert len(asked) <= len(data) / reader_module.WINDOW_BYTES + 2


HUGE = struct.pack("<Q", 2**63)
HOSTILE = {
    "an empty file": (b"", "ends within the first four bytes: 4 bytes are missing"),
    "no magic": (file(magic=b"PK\x03\x04"), r"not a GGUF file: it begins with b'PK"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian file"),
    "version 1": (file(version=1), "GGUF version 1; versions 2 and 3 can be read"),
    "version 4": (file(version=4), "GGUF version 4"),
    "too many keys": (file(keys=65_537), "65537 metadata keys are over the limit of 65536"),
    "too many tensors": (file(tensors=65_537), "65537 tensors are over the limit of 65536"),
    "keys that aren't there": (file(keys=1), "the name of metadata key 0"),
    "a huge key": (file(HUGE, keys=1), "9223372036854775808 bytes is over the limit of 65535"),
    "an empty key": (file(pair("", 0, b"\1"), keys=1), "metadata key '' is empty"),
    "a key twice": (file(pair("a", 0, b"\1"), pair("a", 0, b"\1"), keys=2), "'a' is given twice"),
    "an unknown type": (file(pair("a", 13, b""), keys=1), "'a' has the unknown type 13"),
    "a huge string": (file(pair("a", STRING, HUGE), keys=1), "ends within the value of 'a'"),
    "an array of arrays": (
        file(pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1)), keys=1),
        "the array 'a' holds arrays",
    ),
    "an array of an unknown type": (
        file(pair("a", ARRAY, struct.pack("<IQ", 99, 1)), keys=1),
        "'a' has the unknown type 99",
    ),
    "a huge array of numbers": (
        file(pair("a", ARRAY, struct.pack("<I", UINT32) + HUGE), keys=1),
        "ends within the array 'a'",
    ),
    "a huge array of strings": (
        file(pair("a", ARRAY, struct.pack("<I", STRING) + HUGE), keys=1),
        "ends within the array 'a'",
    ),
    "a huge string in an array": (
        file(pair("a", ARRAY, struct.pack("<IQ", STRING, 1) + HUGE), keys=1),
        "ends within the array 'a'",
    ),
    "alignment of 3": (
        file(pair("general.alignment", UINT32, b"\3\0\0\0"), keys=1),
        "general.alignment is 3, not a power of two",
    ),
    "alignment of 0": (file(pair("general.alignment", UINT32, bytes(4)), keys=1), "general.alignment is 0"),
    "alignment as text": (
        file(pair("general.alignment", STRING, text("32")), keys=1),
        "general.alignment is '32'",
    ),
    "a tensor's long name": (
        file(entry("t" * 65, (1,), 0, 0), tensors=1),
        "65 bytes is over the limit of 64",
    ),
    "a tensor twice": (
        file(entry("t", (1,), 0, 0), entry("t", (1,), 0, 0), tensors=2, data=bytes(4)),
        "tensor 't' is given twice",
    ),
    "five dimensions": (file(entry("t", (1,) * 5, 0, 0), tensors=1), "'t' has 5 dimensions, more than 4"),
    "an impossible shape": (
        file(entry("t", (2**32, 2**32), 0, 0), tensors=1),
        r"'t' has the impossible shape \[4294967296, 4294967296\]",
    ),
    "rows that no block fits": (
        file(entry("t", (33,), NUMBER_OF["Q4_0"], 0), tensors=1),
        "'t' has rows of 33 elements; Q4_0 comes in 32s",
    ),
    "an offset beyond the end": (
        file(entry("t", (1,), 0, 2**63), tensors=1, data=bytes(4)),
        "cut short: 9223372036854775808 bytes",
    ),
}


@pytest.mark.parametrize(("data", "complaint"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_damaged_header_is_refused_with_what_and_where(data: bytes, complaint: str) -> None:
    with pytest.raises(GgufError, match=complaint) as caught:
        read_bytes(data)
    assert f"(at byte {caught.value.offset})" in str(caught.value)
    assert 0 <= caught.value.offset <= len(data)


def test_an_endless_array_in_an_endless_file_ends_at_the_header_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader_module, "HEADER_BYTES_MAX", 4 << 20)
    head = file(pair("a", ARRAY, struct.pack("<IQ", STRING, 100_000)), keys=1)
    asked = 0

    def read_at(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        # Strings of 1 MiB each: every one of them wants a new window.
        return (head[offset:] + struct.pack("<Q", 1 << 20) * (length // 8))[:length]

    with pytest.raises(GgufError, match="beyond the limit of 4194304 bytes for a header"):
        gguf.read(read_at, 2**50)
    assert asked <= 5 << 20


def test_noise_is_read_or_refused_and_nothing_else() -> None:
    chance = random.Random(20_261_121)
    refused = 0
    for _ in range(20_000):
        data = bytearray(SMALL)
        for _ in range(chance.randint(1, 6)):
            position = chance.randrange(len(data))
            data[position] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        try:
            read_bytes(bytes(data))
        except GgufError:
            refused += 1
    assert 5_000 < refused < 20_000


def test_a_tensor_of_an_unknown_type_reaches_to_its_neighbour() -> None:
    table = (
        entry("late", (7,), 999, 96),
        entry("early", (7,), 998, 0),
        entry("known", (8,), NUMBER_OF["F32"], 64),
    )
    found = read_bytes(file(*table, tensors=3, data=bytes(106)))
    assert [(t.name, t.type, t.size_bytes) for t in found.tensors] == [
        ("late", "type 999", 10),
        ("early", "type 998", 64),
        ("known", "F32", 32),
    ]


def test_alignment_moves_the_data() -> None:
    head = file(
        pair("general.alignment", UINT32, struct.pack("<I", 256)),
        entry("t", (1,), 0, 0),
        keys=1,
        tensors=1,
    )
    assert read_bytes(head + bytes(256 - len(head) + 4)).data_offset == 256
