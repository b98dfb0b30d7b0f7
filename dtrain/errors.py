"""One root, one class for each thing that a caller would do differently.

Every class carries the exit status of its class (README, "Exit statuses"). A message says what, expected and
got, in that order; advice goes into ``hint``. Misuse by a programmer is ``TypeError`` or ``RuntimeError``, not
one of these.
"""

from __future__ import annotations

from typing import ClassVar


class DtrainError(Exception):
    """Root of everything that dtrain raises on purpose.

    Attributes:
        exit_status: the exit status of the command line for this class.
        kind: the stable name of the class in ``--json`` output.
        hint: what the operator can do, or ``None``.
    """

    exit_status: ClassVar[int] = 1
    kind: ClassVar[str] = "unexpected"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageProblem(DtrainError):
    """The request itself makes no sense: an option is missing or contradicts another."""

    exit_status = 2
    kind = "usage"


class VerificationFailed(DtrainError):
    """Something that was checked is not what it has to be."""

    exit_status = 10
    kind = "verification"


class DigestMismatch(VerificationFailed):
    """Bytes do not have the digest that named them, or a signed hash differs from the recomputed one."""

    exit_status = 11
    kind = "digest"


class BadSignature(VerificationFailed):
    """A signature does not verify, or the key that made it is not the one that is trusted."""

    exit_status = 12
    kind = "signature"


class Expired(VerificationFailed):
    """Signed metadata is past its date, or the clock here is behind the date of its signature."""

    exit_status = 13
    kind = "expired"


class Rollback(VerificationFailed):
    """Signed metadata is older than what was seen before, or there are two versions of the same number."""

    exit_status = 14
    kind = "rollback"


class MissingEvidence(VerificationFailed):
    """Nothing trusted vouches for it: no anchor, an unknown key, an image base that nobody approved."""

    exit_status = 15
    kind = "missing-evidence"


class RouteProblem(VerificationFailed):
    """The route does not allow this step: wrong station, wrong turn, finished, or a broken route."""

    exit_status = 16
    kind = "route"


class UnsafeArchive(VerificationFailed):
    """A layer holds something that must not be unpacked."""

    exit_status = 17
    kind = "unsafe-archive"


class MalformedInput(DtrainError):
    """A document or file does not have the form that its specification asks for."""

    exit_status = 20
    kind = "malformed"


class TransportError(DtrainError):
    """Talking to the place where images live failed."""

    exit_status = 30
    kind = "transport"


class NotFound(TransportError):
    """The repository, tag, manifest or blob does not exist."""

    exit_status = 31
    kind = "not-found"


class AccessDenied(TransportError):
    """The credentials are missing, wrong, or not sufficient."""

    exit_status = 32
    kind = "access-denied"


class Unreachable(TransportError):
    """No answer: connection, TLS or time-out."""

    exit_status = 33
    kind = "unreachable"


class Conflict(TransportError):
    """Someone else published in the meantime."""

    exit_status = 34
    kind = "conflict"


class KeyProblem(DtrainError):
    """A key cannot be used."""

    exit_status = 40
    kind = "key"


class KeyNotFound(KeyProblem):
    """There is no key at the place that was named."""

    exit_status = 41
    kind = "key-not-found"


class WrongKey(KeyProblem):
    """The key or its password is not the right one, or of an unsuitable kind."""

    exit_status = 42
    kind = "wrong-key"


class StorageProblem(DtrainError):
    """The local disk refuses: full, read-only, no permission, or something is in the way."""

    exit_status = 1
    kind = "storage"
