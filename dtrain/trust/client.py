"""The TUF client workflow (TUF specification 5) over any source of metadata files: python-tuf's, with our errors.

It knows roles, versions, thresholds and dates. What trains ask for beyond TUF is in :mod:`dtrain.trust.rules`; where
metadata is kept between calls in :mod:`dtrain.trust.store`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from dtrain.errors import (
    BadSignature,
    DigestMismatch,
    DtrainError,
    Expired,
    MalformedInput,
    MissingEvidence,
    NotFound,
    Rollback,
    StorageProblem,
    VerificationFailed,
)
from dtrain.oci.digest import Digest

Source = Callable[[str], Iterator[bytes]]
"""Gives the bytes behind a URL, or raises :class:`~dtrain.errors.NotFound`."""


class Client:
    """A client of one TUF repository.

    Args:
        folder: where verified metadata is kept, one file for each role.
        source: gives metadata files and targets by URL.
        now: what time it is.
        bootstrap: the trusted root metadata; ``None`` takes the one in ``folder``.
        metadata_url: what stands before the names of metadata files.
        max_stale: how long past its date timestamp and snapshot may be; zero unless asked for.

    Raises:
        VerificationFailed: the root is not valid in itself.
    """

    def __init__(
        self, folder: Path, source: Source, *, now: datetime, bootstrap: bytes | None, metadata_url: str = "tuf:/",
        max_stale: timedelta = timedelta(0), config: UpdaterConfig | None = None,
    ) -> None:
        self._folder = folder
        self._now = now
        with tuf_errors():
            self.updater = Updater(str(folder), metadata_url, fetcher=_Fetcher(source), bootstrap=bootstrap,
                                   config=config or UpdaterConfig())
        # python-tuf has no public way to set the time, or to list what it trusts
        self._trusted = self.updater._trusted_set
        self._trusted.reference_time = now - max_stale

    def refresh(self) -> None:
        """Bring the four top-level roles up to date (TUF 5.3 to 5.6).

        Raises:
            VerificationFailed: one of its kinds.
            TransportError: the metadata cannot be had.
        """
        with tuf_errors():
            self.updater.refresh()
        for name, signed in (("root", self.root), ("targets", self.targets)):
            self.check_date(name, signed)  # max_stale is for the online roles alone

    def target(self, path: str) -> TargetFile | None:
        """Return the target of that path from the role that it is delegated to (TUF 5.6.7), or ``None``."""
        with tuf_errors():
            return self.updater.get_targetinfo(path)

    def role(self, name: str) -> Targets:
        """Return the verified metadata of a delegated role, loaded by :meth:`target` before."""
        if name not in self._trusted:
            raise MissingEvidence(f"metadata {name}: expected the role to have its own paths, got them elsewhere")
        role = self._trusted[name]
        assert isinstance(role, Targets)  # noqa: S101  python-tuf's own promise
        self.check_date(name, role)
        return role

    def check_date(self, name: str, signed: Root | Targets) -> None:
        """Check that metadata is not past its date, whatever ``max_stale`` says.

        Raises:
            Expired: it is.
        """
        if signed.is_expired(self._now):
            raise Expired(f"metadata {name}: expected one that is valid at {self._now:%Y-%m-%d %H:%M} UTC, "
                          f"got one that expired at {signed.expires:%Y-%m-%d %H:%M} UTC")

    @property
    def root(self) -> Root:
        """The trusted root."""
        return self._trusted.root

    @property
    def timestamp(self) -> Timestamp:
        """The trusted timestamp."""
        return self._trusted.timestamp

    @property
    def snapshot(self) -> Snapshot:
        """The trusted snapshot."""
        return self._trusted.snapshot

    @property
    def targets(self) -> Targets:
        """The trusted top-level targets."""
        return self._trusted.targets

    def signers(self, role: str, *, delegator: Root | Targets | None = None) -> frozenset[str]:
        """Return the ids of the keys whose signatures over a trusted role verify."""
        metadata: Metadata[Any] = Metadata.from_file(str(self._folder / f"{role}.json"))
        result = (delegator or self.root).get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        return frozenset(result.signed)

    def signed_digest(self, role: str) -> str:
        """Return the hex sha256 of what is signed in a trusted role, without its signatures."""
        metadata: Metadata[Any] = Metadata.from_file(str(self._folder / f"{role}.json"))
        return Digest.of(metadata.signed_bytes).hex


class _Fetcher(FetcherInterface):
    """Lets python-tuf fetch from a :data:`Source`."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return self._source(url)
        except NotFound as error:
            raise exceptions.DownloadHTTPError(str(error), 404) from error
        except DtrainError as error:
            raise exceptions.DownloadError(str(error)) from error


@contextlib.contextmanager
def tuf_errors() -> Iterator[None]:
    """Turn python-tuf's errors into ours, here and nowhere else."""
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        raise Expired(f"metadata: expected one that is still valid, got: {error}",
                      hint="the train waited too long, or someone withholds newer metadata; the creator can extend it "
                           "with: dtrain trust refresh") from error
    except exceptions.BadVersionNumberError as error:
        raise Rollback(f"metadata: expected no older version than before, got: {error}",
                       hint="someone put back an older state of the train; do not run it") from error
    except exceptions.UnsignedMetadataError as error:
        raise BadSignature(f"metadata: expected signatures of the trusted keys, got: {error}",
                           hint="the metadata was signed by others; do not run this train") from error
    except exceptions.LengthOrHashMismatchError as error:
        raise DigestMismatch(f"metadata: expected the content that signed metadata names, got: {error}") from error
    except exceptions.DownloadLengthMismatchError as error:
        raise MalformedInput(f"metadata: expected no more than its signed size, got: {error}") from error
    except exceptions.DownloadHTTPError as error:
        raise MissingEvidence(f"metadata: expected a file that signed metadata names, got: {error}") from error
    except exceptions.DownloadError as error:
        if isinstance(error.__cause__, DtrainError):
            raise error.__cause__ from None
        raise VerificationFailed(f"metadata: expected to fetch it, got: {error}") from error
    except DeserializationError as error:
        raise MalformedInput(f"metadata: expected TUF metadata, got: {error}") from error
    except exceptions.RepositoryError as error:
        if isinstance(error.__cause__, DeserializationError):
            raise MalformedInput(f"metadata: expected TUF metadata, got: {error}") from error
        raise MissingEvidence(f"metadata: expected a complete and consistent state, got: {error}") from error
    except OSError as error:
        raise StorageProblem(f"metadata store: expected to read and write there, got: {error}") from error
