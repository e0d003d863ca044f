"""The error hierarchy against the table that clients rely on: each code has one status and one type."""

from __future__ import annotations

import pytest

from corral import errors

TABLE = {
    "InvalidRequest": (400, "invalid_request_error", "invalid_request"),
    "InvalidApiKey": (401, "authentication_error", "invalid_api_key"),
    "ModelNotAllowed": (403, "permission_error", "model_not_allowed"),
    "ModelNotFound": (404, "invalid_request_error", "model_not_found"),
    "NotFound": (404, "invalid_request_error", "not_found"),
    "MethodNotAllowed": (405, "invalid_request_error", "method_not_allowed"),
    "RequestTimeout": (408, "invalid_request_error", "request_timeout"),
    "PayloadTooLarge": (413, "invalid_request_error", "payload_too_large"),
    "UriTooLong": (414, "invalid_request_error", "uri_too_long"),
    "HeaderFieldsTooLarge": (431, "invalid_request_error", "header_fields_too_large"),
    "RateLimitExceeded": (429, "rate_limit_error", "rate_limit_exceeded"),
    "UpstreamError": (502, "server_error", "upstream_error"),
    "QueueFull": (503, "server_error", "queue_full"),
    "InsufficientVram": (503, "server_error", "insufficient_vram"),
    "ModelFailed": (503, "server_error", "model_failed"),
    "ModelNotLoaded": (503, "server_error", "model_not_loaded"),
    "ShuttingDown": (503, "server_error", "shutting_down"),
    "TooManyLargeBodies": (503, "server_error", "too_many_large_bodies"),
    "TooManyConnections": (503, "server_error", "too_many_connections"),
    "QueueTimeout": (504, "server_error", "queue_timeout"),
    "UpstreamTimeout": (504, "server_error", "upstream_timeout"),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_failure_has_its_status_type_and_code(name: str) -> None:
    kind: type[errors.CorralError] = getattr(errors, name)
    assert (kind.status, kind.type, kind.code) == TABLE[name]


def test_an_error_says_what_it_was_told() -> None:
    error = errors.QueueFull("full", param="model", retry_after_s=2.5, headers=(("allow", "GET"),))
    assert (str(error), error.message, error.param) == ("full", "full", "model")
    assert (error.retry_after_s, error.headers, error.should_retry) == (2.5, (("allow", "GET"),), None)


def test_a_setting_that_stops_the_start_is_no_answer_to_a_request() -> None:
    assert not issubclass(errors.SettingsError, errors.CorralError)
