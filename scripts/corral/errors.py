"""Every way a request can fail, in one hierarchy.

An error knows its HTTP status, the `type` and `code` of the OpenAI envelope, and, where waiting
helps, for how long. Rooms raise these; only the handlers turn them into bytes. Messages are for
people: what happened, to what, and what to do about it. This module imports nothing, so every room
may import it.
"""

from __future__ import annotations


class CorralError(Exception):
    """A failure that a client is told about. Subclasses fix status, type and code."""

    status = 500
    type = "server_error"
    code = "internal_error"
    # None leaves the decision to the client's own rule; False says that waiting can't help.
    should_retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers


class SettingsError(Exception):
    """A setting that stops the start: names the key, the value, and what would be right."""


# What the client sent ---------------------------------------------------------------------------


class InvalidRequest(CorralError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class MethodNotAllowed(InvalidRequest):
    status, code = 405, "method_not_allowed"


class RequestTimeout(InvalidRequest):
    status, code = 408, "request_timeout"


class PayloadTooLarge(InvalidRequest):
    status, code = 413, "payload_too_large"


class UriTooLong(InvalidRequest):
    status, code = 414, "uri_too_long"


class ExpectationFailed(InvalidRequest):
    status, code = 417, "expectation_failed"


class HeaderFieldsTooLarge(InvalidRequest):
    status, code = 431, "header_fields_too_large"


class NotImplementedHere(InvalidRequest):
    status, code = 501, "not_implemented"
    should_retry = False


class HttpVersionNotSupported(InvalidRequest):
    status, code = 505, "http_version_not_supported"
    should_retry = False


class NotFound(InvalidRequest):
    status, code = 404, "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


# Who sent it ------------------------------------------------------------------------------------


class InvalidApiKey(CorralError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class ModelNotAllowed(CorralError):
    status, type, code = 403, "permission_error", "model_not_allowed"


class RateLimitExceeded(CorralError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class ConcurrencyLimitExceeded(CorralError):
    status, type, code = 429, "rate_limit_error", "concurrency_limit_exceeded"


# What stands behind the gate --------------------------------------------------------------------


class UpstreamError(CorralError):
    status, code = 502, "upstream_error"


class QueueFull(CorralError):
    status, code = 503, "queue_full"


class InsufficientVram(CorralError):
    status, code = 503, "insufficient_vram"


class ModelFailed(CorralError):
    status, code = 503, "model_failed"
    should_retry = False


class ModelNotLoaded(CorralError):
    status, code = 503, "model_not_loaded"
    should_retry = False


class ShuttingDown(CorralError):
    status, code = 503, "shutting_down"


class TooManyConnections(CorralError):
    status, code = 503, "too_many_connections"


class TooManyLargeBodies(CorralError):
    status, code = 503, "too_many_large_bodies"


class QueueTimeout(CorralError):
    status, code = 504, "queue_timeout"


class UpstreamTimeout(CorralError):
    status, code = 504, "upstream_timeout"
