"""The gateway's certificate: one TLS context, whose certificate is exchanged when its files change.

A certificate is renewed every few weeks by a program that knows nothing of us: it writes two files, one
after the other. So both are tried together in a context of their own first; a pair that does not fit yet,
or can't be read, leaves the loaded one in force. A context takes a new certificate while it is in use:
handshakes from then on show it, and connections that are open stay as they are.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from corral.errors import SettingsError

log = logging.getLogger("corral.tls")

# What tells one state of a file from another. A renewal may replace it, or what a link leads to.
Stamp = tuple[int, int, int]


class Certificate:
    def __init__(self, cert_file: Path, key_file: Path | None) -> None:
        """Raises SettingsError if there is nothing to begin with."""
        self._cert_file = cert_file
        self._key_file = key_file or cert_file
        self.context = self._new_context()
        self._seen = self._stamps()
        try:
            self._load_into(self.context)
        except OSError as error:
            raise SettingsError(self._complaint(error)) from error

    def reload_if_changed(self) -> None:
        """Take on what the files hold now. Cheap, and never fails: a broken pair changes nothing."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._load_into(self._new_context())
            self._load_into(self.context)
        except OSError as error:
            log.error("%s; the certificate that is loaded stays in force", self._complaint(error))
        else:
            log.info("the certificate in %s has changed and is in force", self._cert_file)

    def _load_into(self, context: ssl.SSLContext) -> None:
        # A callable: OpenSSL would otherwise ask for the password of an encrypted key on the terminal.
        context.load_cert_chain(self._cert_file, self._key_file, password=lambda: "")

    def _complaint(self, error: OSError) -> str:
        """`error` is an ssl.SSLError for what can be read and is no pair, which says little to people."""
        if isinstance(error, ssl.SSLError):
            said = error.reason or "it can't be read"
            return f"TLS_CERT_FILE {self._cert_file} and TLS_KEY_FILE {self._key_file} are no pair: {said}"
        return f"TLS_CERT_FILE {self._cert_file} or TLS_KEY_FILE {self._key_file}: {error.strerror or error}"

    def _stamps(self) -> tuple[Stamp | None, Stamp | None]:
        return _stamp(self._cert_file), _stamp(self._key_file)

    @staticmethod
    def _new_context() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        return context


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
