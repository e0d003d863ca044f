"""The gateway's certificate: what a TLS handshake shows, exchanged when its files change.

A certificate is renewed every few weeks by a program that knows nothing of us: it writes two files, one
after the other. So each pair is read into a context of its own. One that does not fit yet, or can't be
read, is thrown away; one that does takes the place of the last: the context that the sockets were given
hands every handshake on to the newest. Nothing is ever loaded into a context in use, because there a new
key of another kind stands beside the old one, and half a pair undoes the whole (measured).
"""

from __future__ import annotations

import errno
import logging
import os
import ssl
from pathlib import Path

from corral.errors import SettingsError

log = logging.getLogger("corral.tls")

# What tells one state of a file from another. A renewal may replace it, or what a link leads to, or only
# open it to us.
Stamp = tuple[int, int, int, int]


class Certificate:
    def __init__(self, cert_file: Path, key_file: Path | None) -> None:
        """Raises SettingsError if there is nothing to begin with."""
        self._cert_file = cert_file
        self._key_file = key_file or cert_file
        self._seen = self._stamps()
        try:
            self.context = self._newest = self._load()
        except OSError as error:
            raise SettingsError(self._complaint(error)) from error
        # It is called in every handshake, whether the client names a server or not.
        self.context.sni_callback = self._hand_on

    def _hand_on(self, handshake: ssl.SSLObject, _server_name: str, _context: ssl.SSLContext) -> None:
        handshake.context = self._newest

    def reload_if_changed(self) -> None:
        """Take on what the files hold now. Cheap, and never fails: a broken pair changes nothing."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._newest = self._load()
        except OSError as error:
            log.error("%s; the certificate that is loaded stays in force", self._complaint(error))
        else:
            log.info("the certificate in %s has changed and is in force", self._cert_file)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        for path in (self._cert_file, self._key_file):
            # A pipe, say, that nobody writes to would be waited for, for ever.
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "no plain file", str(path))
        # A callable: OpenSSL would otherwise ask for the password of an encrypted key on the terminal.
        context.load_cert_chain(self._cert_file, self._key_file, password=lambda: "")
        return context

    def _complaint(self, error: OSError) -> str:
        """`error` is an ssl.SSLError for what can be read and is no pair, which says little to people."""
        if isinstance(error, ssl.SSLError):
            said = error.reason or "it can't be read"
            return f"TLS_CERT_FILE {self._cert_file} and TLS_KEY_FILE {self._key_file} are no pair: {said}"
        return f"TLS_CERT_FILE {self._cert_file} or TLS_KEY_FILE {self._key_file}: {error.strerror or error}"

    def _stamps(self) -> tuple[Stamp | None, Stamp | None]:
        return _stamp(self._cert_file), _stamp(self._key_file)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
