"""One short field found in a form: whole forms, broken ones, and a seeded hail of both."""

from __future__ import annotations

import random

import pytest

from corral.errors import InvalidRequest
from corral.formats import multipart

TYPE = "multipart/form-data; boundary=B0und"


def form(*parts: tuple[str, bytes], boundary: str = "B0und", preamble: bytes = b"") -> bytes:
    """A form as browsers write one."""
    delimiter = b"--" + boundary.encode()
    pieces = [
        b'%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (delimiter, name.encode(), value)
        for name, value in parts
    ]
    return preamble + b"".join(pieces) + delimiter + b"--\r\n"


@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (form(("model", b"whisper")), TYPE, "whisper"),
        (form(("file", b"RIFF\r\n\0\xff"), ("model", b"m"), ("stream", b"true")), TYPE, "m"),
        (form(("file", b"x"), ("prompt", b"y")), TYPE, None),
        (form(), TYPE, None),
        (form(("model", b"")), TYPE, ""),
        (form(("model", "ü".encode())), TYPE, "ü"),
        (form(("model", b"first"), ("model", b"second")), TYPE, "first"),
        (form(("model", b"m"), preamble=b"to be ignored\r\n"), TYPE, "m"),
        (form(("model", b"--B0un\r\n--")), TYPE, "--B0un\r\n--"),
        (form(("model", b"m"), boundary="a b?"), 'multipart/form-data; boundary="a b?"', "m"),
        (form(("model", b"m"), boundary="x" * 70), f"multipart/form-data;boundary={'x' * 70}", "m"),
        (form(("model", b"m")), "multipart/form-data; charset=utf-8; BOUNDARY=B0und; a=b", "m"),
        (b"--B0und \t\r\n" + form(("model", b"m"))[9:], TYPE, "m"),
        (b"--B0und\r\n" + form(("model", b"m")), TYPE, "m"),
        (form(("model", b"m")) + b"an epilogue\r\n--B0und", TYPE, "m"),
    ],
    ids=[
        "alone",
        "among others",
        "not there",
        "empty form",
        "empty value",
        "not ascii",
        "twice",
        "preamble",
        "almost a boundary",
        "quoted boundary",
        "longest boundary",
        "other parameters",
        "white space behind the delimiter",
        "a part of nothing",
        "epilogue",
    ],
)
def test_a_field_is_found_by_its_name(body: bytes, content_type: str, value: str | None) -> None:
    assert multipart.field(body, content_type, "model") == value


@pytest.mark.parametrize(
    "disposition",
    [
        'content-disposition:form-data;name="model"',
        'CONTENT-DISPOSITION: form-data; filename="a.wav"; name="model"',
        'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"\r\nX-More: 1',
    ],
    ids=["tight", "after the file name", "between others"],
)
def test_the_name_is_read_from_the_disposition_wherever_it_stands(disposition: str) -> None:
    body = f"--B0und\r\n{disposition}\r\n\r\nm\r\n--B0und--".encode()
    assert multipart.field(body, TYPE, "model") == "m"


@pytest.mark.parametrize(
    "head",
    [
        'Content-Disposition: form-data; name="models"',
        'Content-Disposition: form-data; filename="model"',
        'X-Content-Disposition: form-data; name="model"',
        'Content-Type: text/plain; name="model"',
        f'Content-Disposition: form-data; x="{"y" * 9000}"; name="model"',
    ],
    ids=["longer", "file name", "other header", "other parameter", "head too long"],
)
def test_what_only_looks_like_the_field_is_not_it(head: str) -> None:
    body = f"--B0und\r\n{head}\r\n\r\nm\r\n--B0und--".encode()
    assert multipart.field(body, TYPE, "model") is None


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (form(), "multipart/form-data", "without a boundary in Content-Type"),
        (form(), "multipart/form-data; boundary=", "without a boundary in Content-Type"),
        (b"", TYPE, "boundary does not occur in the body"),
        (b'{"model": "m"}', TYPE, "boundary does not occur in the body"),
        (b"x--B0und\r\n", TYPE, "boundary does not occur in the body"),
        (b"--B0und", TYPE, "ends in the middle of a part"),
        (form(("file", b"x"))[:-11], TYPE, "ends in the middle of a part"),
        (form(("model", b"x" * 1025)), TYPE, "The form's field 'model' is too long."),
        (form(("model", b"\xff")), TYPE, "The form's field 'model' is not UTF-8."),
        (form(*[("x", b"")] * 1001), TYPE, "The form has more than 1000 parts."),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_a_body_that_is_no_form_is_refused_with_the_reason(
    body: bytes, content_type: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message.replace("(", r"\(")):
        multipart.field(body, content_type, "model")


def test_a_form_that_is_cut_anywhere_is_found_out_or_had_the_field_before() -> None:
    body = form(("file", b"data"), ("model", b"whisper"))
    there = body.index(b"whisper") + len(b"whisper\r\n--B0und")
    for cut in range(len(body)):
        if cut >= there:
            assert multipart.field(body[:cut], TYPE, "model") == "whisper"
        else:
            with pytest.raises(InvalidRequest):
                multipart.field(body[:cut], TYPE, "model")


PIECES = [
    b"--B0und",
    b"--B0und--",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b'Content-Disposition: form-data; name="model"',
]
PIECES += [b'; name="', b"model", b"\xff\0", b"; " * 50, b"--", b'filename="x"']


@pytest.mark.parametrize("seed", range(10))
def test_nothing_but_a_text_or_a_refusal_comes_of_any_bytes(seed: int) -> None:
    luck = random.Random(seed)
    for _ in range(1000):
        body = b"".join(luck.choices(PIECES, k=luck.randint(0, 30)))
        content_type = luck.choice(
            [TYPE, TYPE + '"', "multipart/form-data; boundary=\x80\xe4", "x; boundary=B0und"]
        )
        try:
            value = multipart.field(body, content_type, "model")
        except InvalidRequest:
            continue
        assert value is None or len(value) <= multipart.FIELD_MAX_BYTES


@pytest.mark.parametrize("seed", range(10))
def test_what_is_written_as_a_form_is_read_back(seed: int) -> None:
    luck = random.Random(seed)
    for _ in range(200):
        value = "".join(luck.choices("ab-\r\nü=;", k=luck.randint(0, 20)))
        others = [("file", luck.randbytes(luck.randint(0, 50))) for _ in range(luck.randint(0, 4))]
        parts = [*others, ("model", value.encode())]
        luck.shuffle(parts)
        assert multipart.field(form(*parts), TYPE, "model") == value
