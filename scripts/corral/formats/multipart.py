"""Just enough multipart/form-data (RFC 7578) to find one short text field in an upload.

The body itself passes through to the engine untouched, so this never needs to take it apart: it walks
from boundary to boundary and looks at the headers of each part.
"""

from __future__ import annotations

import re

from corral import errors

# RFC 2046, 5.1.1: 1 to 70 characters, in quotes if they need them.
BOUNDARY = re.compile(r"""(?i:;\s*boundary=)(?:"([^"\r\n]{1,70})"|([0-9A-Za-z'()+_,./:=?-]{1,70}))""")
NAME = re.compile(rb"""(?i:^content-disposition:)[^\r\n]*?;\s*name="([^"\r\n]*)\"""", re.MULTILINE)
PARTS_MAX = 1000
PART_HEAD_MAX_BYTES = 8 * 1024
FIELD_MAX_BYTES = 1024


def field(body: bytes, content_type: str, name: str) -> str | None:
    """The text of the form's field `name`, or None. Raises InvalidRequest for a body that is no form."""
    match = BOUNDARY.search(content_type)
    if match is None:
        raise errors.InvalidRequest("multipart/form-data without a boundary in Content-Type.")
    delimiter = b"--" + (match[1] or match[2]).encode("latin-1")
    at = 0
    if not body.startswith(delimiter):
        at = body.find(b"\r\n" + delimiter) + 2
        if at < 2:
            raise errors.InvalidRequest("The form's boundary does not occur in the body.")
    for _ in range(PARTS_MAX):
        at += len(delimiter)
        if body.startswith(b"--", at):
            return None
        start = body.find(b"\r\n", at) + 2
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0 or start < 2:
            raise errors.InvalidRequest("The form ends in the middle of a part.")
        head_end = body.find(b"\r\n\r\n", start, min(end, start + PART_HEAD_MAX_BYTES))
        if head_end >= 0:
            disposition = NAME.search(body[start:head_end])
            if disposition is not None and disposition[1] == name.encode():
                return _text(body[head_end + 4 : end], name)
        at = end + 2
    raise errors.InvalidRequest(f"The form has more than {PARTS_MAX} parts.")


def _text(value: bytes, name: str) -> str:
    if len(value) > FIELD_MAX_BYTES:
        raise errors.InvalidRequest(f"The form's field {name!r} is too long.", param=name)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.InvalidRequest(f"The form's field {name!r} is not UTF-8.", param=name) from None
