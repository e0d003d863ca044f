"""The grammar of HTTP/1.1 as compiled patterns, each below the text that it stands for.

Every pattern takes time linear in its input, whatever a peer sends: neighbouring parts share no
character, and the repeats are possessive (`++`, `*+`: what they took they keep), so there is only one
way to read a line and nothing to try again. Patterns match bytes; nothing is decoded before it is
known to be ASCII. Rules are quoted from RFC 9110 and RFC 9112; "obs-" marks what is kept only for old
peers.
"""

from __future__ import annotations

import re
from typing import Final

# RFC 9110 5.6.2: token = 1*tchar
# tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" / "|" / "~"
#         / DIGIT / ALPHA
_TCHAR: Final = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
TOKEN: Final = re.compile(rb"[%b]++" % _TCHAR)

# RFC 9110 5.5: field-vchar = VCHAR / obs-text; within a value also SP and HTAB.
# RFC 9112 4: reason-phrase = 1*( HTAB / SP / VCHAR / obs-text ), the same characters.
_TEXT: Final = rb"\t\x20-\x7e\x80-\xff"
TEXT: Final = re.compile(rb"[%b]*+" % _TEXT)

# RFC 9112 3: request-line = method SP request-target SP HTTP-version
# RFC 9112 2.3: HTTP-version = HTTP-name "/" DIGIT "." DIGIT; HTTP-name is case-sensitive.
# The target may hold what RFC 3986 allows, and also [ ] ^ ` { | }, which browsers send as they are
# (URL Standard, "path percent-encode set" and "query percent-encode set"). Not allowed stay " < > #,
# control characters and bytes above 0x7E, and the backslash, which some servers read as a slash.
METHOD_MAX: Final = 32
_TARGET: Final = rb"!$-;=?-\[\]-~"
TARGET: Final = re.compile(rb"[%b]++" % _TARGET)
REQUEST_LINE: Final = re.compile(
    rb"([%b]{1,%d}+) ([%b]++) HTTP/1\.([01])\r\n" % (_TCHAR, METHOD_MAX, _TARGET)
)
VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")

# RFC 9112 3.2.2: absolute-form = absolute-URI. A path may be missing; a fragment never occurs.
ABSOLUTE_FORM: Final = re.compile(r"https?://([^/?]*+)(/[^?]*+)?(?:\?(.*+))?", re.IGNORECASE)

# RFC 9110 7.2: Host = uri-host [ ":" port ]
# RFC 3986 3.2.2: reg-name = *( unreserved / pct-encoded / sub-delims ); IP-literal stands in brackets.
# IPv4 addresses are reg-names too. An empty host is for targets that have none.
HOST: Final = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*+|\[[0-9A-Fa-f:.]++\])(?::[0-9]{0,5})?")

# RFC 9112 4: status-line = HTTP-version SP status-code SP [ reason-phrase ]
# Some servers leave out the second space together with the phrase; nothing depends on it.
# RFC 9110 15: codes outside 100 to 599 are invalid.
STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([%b]*+))?\r\n" % _TEXT)

# RFC 9112 5: field-line = field-name ":" OWS field-value OWS
# No white space before the colon (5.1), no line that begins with white space (2.2, 5.2), no bare CR
# or LF (2.2). Each line is CRLF-ended, and the whole block is matched at once.
FIELD_LINE: Final = re.compile(rb"[%b]++:[%b]*+" % (_TCHAR, _TEXT))
FIELD_BLOCK: Final = re.compile(rb"(?:[%b]++:[%b]*+\r\n)*" % (_TCHAR, _TEXT))
# Only for a block that FIELD_BLOCK accepted: there the first colon ends the name, the first CR the value.
FIELDS: Final = re.compile(rb"([^:]++):([^\r]*+)\r\n")

# RFC 9112 2.2: lines end with CRLF. A CR at the very end may still be followed by its LF. It takes two
# bytes to judge one: a lookbehind would look past the place where the search begins, into a body that
# was read already, and could find the CR there.
BARE_LINE_END: Final = re.compile(rb"[^\r]\n|\r[^\n]")
LINE_END_BYTE: Final = re.compile(rb"[\r\n]")  # within a line that was cut at its CRLF

# RFC 9112 7.1: chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF; chunk-size = 1*HEXDIG
# RFC 9112 7.1.1: chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )
# 15 digits stay below 2**63. What an extension says is of no interest, only that it can't hide an
# end of line.
CHUNK_DIGITS_MAX: Final = 15
EXTENSION_MAX_BYTES: Final = 256
PLAIN_CHUNK_HEAD: Final = re.compile(rb"([0-9A-Fa-f]{1,%d}+)\r\n" % CHUNK_DIGITS_MAX)
_EXTENSION: Final = rb"[\t ]{0,8}+;[%b]{0,%d}+" % (_TEXT, EXTENSION_MAX_BYTES)
CHUNK_HEAD: Final = re.compile(rb"([0-9A-Fa-f]{1,%d}+)(%b)?\r\n" % (CHUNK_DIGITS_MAX, _EXTENSION))
# What may yet become a CHUNK_HEAD when more bytes come.
CHUNK_HEAD_BEGUN: Final = re.compile(
    rb"(?:[0-9A-Fa-f]{1,%d}+(?:[\t ]{0,8}+|%b)?\r?)?" % (CHUNK_DIGITS_MAX, _EXTENSION)
)
LONG_EXTENSION: Final = re.compile(rb"[\t ]{0,8}+;[%b]{%d}" % (_TEXT, EXTENSION_MAX_BYTES + 1))
