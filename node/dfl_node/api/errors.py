"""Errors across HTTP: the same class with the same exit code comes out at the other end."""

from __future__ import annotations

from typing import Any

from dfl_ledger import errors
from dfl_ledger.errors import BlobNotFound, DflError, PeerMisbehaved, Reverted, SpecInvalid

_BY_NAME: dict[str, type[DflError]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, DflError)
}
_STATUS = {1: 409, 2: 400, 3: 503, 4: 504, 5: 403, 6: 422}
_MAX_TEXT = 2000


def http_status(error: DflError) -> int:
    match error:
        case SpecInvalid():
            return 422
        case BlobNotFound():
            return 404
        case _:
            return _STATUS.get(error.exit_code, 500)


def to_json(error: DflError) -> dict[str, Any]:
    """The body of an error response."""
    told: dict[str, Any] = {
        "type": type(error).__name__,
        "what": error.what,
        "why": error.why,
        "help": error.help_command,
        "exit_code": error.exit_code,
    }
    match error:
        case SpecInvalid(field=field):
            told["field"] = field
        case PeerMisbehaved(peer=peer):
            told["peer"] = peer
        case Reverted(call=call, error=name):
            told |= {"call": call, "error": name, "args": {k: str(v) for k, v in error.args_.items()}}
    return {"error": told}


def from_json(body: Any) -> DflError | None:
    """The error a response tells of, None if the body is not in that form."""
    told = body.get("error") if isinstance(body, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("what"), str):
        return None

    def text(name: str) -> str:
        return str(told.get(name) or "")[:_MAX_TEXT]

    kind = _BY_NAME.get(str(told.get("type")), DflError)
    # Not through the subclass's constructor: the words are those of the original already.
    error = kind.__new__(kind)
    DflError.__init__(error, text("what"), why=text("why"), help_command=text("help"))
    match error:
        case SpecInvalid():
            error.field = text("field")
        case PeerMisbehaved():
            error.peer = text("peer")
        case Reverted():
            arguments = told.get("args")
            error.call, error.error = text("call"), text("error")
            error.args_ = arguments if isinstance(arguments, dict) else {}
    return error
