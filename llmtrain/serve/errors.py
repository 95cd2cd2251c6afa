"""What a request is refused with: a status, and the error object of OpenAI's interface."""

from __future__ import annotations

from typing import Any, ClassVar

from llmtrain.errors import LlmtrainError


class RequestError(LlmtrainError):
    """A request that is not answered."""

    status: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"
    headers: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    def document(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return error_document(self.message, self.kind, self.param, self.code)


class BadRequestError(RequestError):
    """The body is not a request."""


class UnauthorizedError(RequestError):
    """The key is missing or wrong."""

    status = 401
    headers = (("WWW-Authenticate", "Bearer"),)


class ForbiddenError(RequestError):
    """The request is for another host's name."""

    status = 403


class NotFoundError(RequestError):
    """There is no such model or path."""

    status = 404


class TooSlowError(RequestError):
    """The body did not arrive in time."""

    status = 408


class TooLargeError(RequestError):
    """The body is larger than any request."""

    status = 413


class MediaTypeError(RequestError):
    """The body is not said to be JSON."""

    status = 415


class BusyError(RequestError):
    """As many requests wait as may."""

    status = 429
    kind = "rate_limit_error"
    headers = (("Retry-After", "1"),)


class FailedError(RequestError):
    """The model failed."""

    status = 500
    kind = "server_error"


class UnavailableError(RequestError):
    """The server is shutting down, or cannot answer any more."""

    status = 503
    kind = "server_error"
    headers = (("Retry-After", "5"),)


def error_document(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return the error object of OpenAI's interface."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
