"""A repository at a registry as a :class:`~dtrain.transport.protocol.Transport` (distribution-spec, version 1.1).

Every byte is checked against what was asked for. How requests travel is in :mod:`.client`, how blobs move in
:mod:`.blobs`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from dtrain.errors import Conflict, DigestMismatch, MalformedInput, NotFound, TransportError, Unreachable
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Index, Manifest, RawManifest, make_index, parse_manifest
from dtrain.oci.reference import Reference, check_tag
from dtrain.oci.strict_json import Fields, parse_json
from dtrain.oci.verified import VerifiedReader
from dtrain.transport.blobs import Download, cancel, check_stored, session_of, upload
from dtrain.transport.client import PUSH, Call, RegistryClient
from dtrain.transport.failures import MayPass
from dtrain.transport.hosts import Origin, follow
from dtrain.transport.protocol import Opener
from dtrain.transport.wire import RegistrySettings

if TYPE_CHECKING:
    import requests

TAGS_MAX = 100_000  # tags of one repository
PAGE = 1000  # tags asked for at once
_NEXT = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?', re.IGNORECASE)  # RFC 8288


class Registry:
    """One repository at a registry; threads may share it.

    Args:
        reference: names the host and repository; its tag and digest are not used.
        settings: how to talk to the host.
    """

    def __init__(self, reference: Reference, settings: RegistrySettings | None = None) -> None:
        if reference.layout is not None or not reference.repository:
            raise RuntimeError("a reference to a registry, please")
        self._reference = reference
        self._client = RegistryClient(reference, settings or RegistrySettings())

    def __repr__(self) -> str:
        return f"<Registry {self.place}>"

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @property
    def place(self) -> str:
        """The host and repository, as in the reference."""
        return self._reference.place

    def fetch_manifest(self, selector: str | Digest) -> RawManifest:
        """Return the manifest or index that a tag or digest names, at most 4 MiB.

        Raises:
            NotFound: there is none.
            DigestMismatch: the bytes have another digest than was asked for, or than the registry claims.
        """
        if isinstance(selector, str):
            check_tag(selector)
        response = self._client.call(Call(method="GET", path=f"manifests/{selector}",
                                          what=f"manifest {_short(selector)}",
                                          headers={"Accept": media_types.ACCEPT_MANIFEST}))
        raw = response.content
        if isinstance(selector, Digest):
            _check_digest(raw, selector, what=f"{self.place}: manifest {selector.short}")
        claimed = response.headers.get("Docker-Content-Digest")
        if claimed is not None:
            _check_digest(raw, Digest.parse(claimed, what="Docker-Content-Digest"),
                          what=f"{self.place}: manifest {_short(selector)}")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() or None
        return RawManifest(raw=raw, media_type=media_type,
                           digest=selector if isinstance(selector, Digest) else Digest.of(raw))

    def resolve(self, tag: str) -> Digest | None:
        """Return the digest that ``tag`` names now, of the bytes themselves; ``None`` when there is no such tag."""
        try:
            return self.fetch_manifest(tag).digest
        except NotFound:
            return None

    def open_blob(self, want: Descriptor) -> VerifiedReader:
        """Return a reader of the blob that checks every byte and survives dropped connections.

        Raises:
            NotFound: there is none.
            DigestMismatch: the registry announces another length.
        """
        return VerifiedReader(Download(self._client, want), want)

    def has_blob(self, want: Descriptor) -> bool:
        """Return whether the blob is stored here with the right length."""
        try:
            response = self._client.call(Call(method="HEAD", path=f"blobs/{want.digest}",
                                              what=f"blob {want.digest.short}"))
        except NotFound:
            return False
        length = response.headers.get("Content-Length", "")
        return not length.isdecimal() or int(length) == want.size

    def mount_blob(self, want: Descriptor, source: str) -> bool:
        """Make the blob of the repository ``source`` available here; ``False`` if the registry does not.

        A registry that opens an upload instead (202) gets that session cancelled.
        """
        source = self._client.path_of(source)
        query = urlencode({"mount": str(want.digest), "from": source})
        try:
            response = self._client.once(Call(method="POST", path=f"blobs/uploads/?{query}", what="mount",
                                              actions=PUSH, source=source, accept=frozenset({201, 202})))
        except MayPass:
            return False  # the upload that follows is retried
        except Unreachable:
            raise
        except TransportError:
            return False  # no right to read there, no such repository, no such method
        if response.status_code == 201:
            check_stored(response, want.digest, what=f"mount of {want.digest.short}")
            return True
        if "Location" in response.headers:
            cancel(self._client, session_of(self._client, response))
        return False

    def put_blob(self, want: Descriptor, content: Opener) -> None:
        """Store the blob, unless it is here already.

        Raises:
            DigestMismatch: ``content`` has another length, or the registry stored something else.
        """
        if not self.has_blob(want):
            upload(self._client, want, content)

    def put_manifest(self, manifest: Manifest | Index) -> None:
        """Store the manifest under its digest; no tag changes."""
        self._put(str(manifest.digest), manifest)

    def put_tag(self, tag: str, manifest: Manifest | Index, *, replacing: Digest | None = None) -> None:
        """Let ``tag`` name the manifest, and read it back.

        ``replacing`` goes along as ``If-Match``, which distribution-spec allows and many registries ignore.

        Raises:
            Conflict: the tag names something else, before or right afterwards.
        """
        check_tag(tag)
        self._put(tag, manifest, {} if replacing is None else {"If-Match": f'"{replacing}"'})
        got = self.resolve(tag)
        if got != manifest.digest:
            raise Conflict(f"{self.place}: tag {tag}: expected {manifest.digest}, got {got or 'no such tag'}",
                           hint="someone else pushed at the same moment; look at what is there now")

    def tags(self) -> tuple[str, ...]:
        """Return all tags in ascending order.

        Raises:
            TransportError: a page links to another host, or they never end.
        """
        path: str | None = f"tags/list?n={PAGE}"
        seen: set[str] = set()
        found: set[str] = set()
        while path is not None:
            if path in seen or len(seen) > TAGS_MAX // 10 or len(found) > TAGS_MAX:
                raise TransportError(f"{self.place}: expected at most {TAGS_MAX} tags, got pages without end")
            seen.add(path)
            response = self._client.call(Call(method="GET", path=path, what="tags"))
            found.update(Fields(parse_json(response.content, what="tags"), "tags").strings("tags"))
            path = self._next_page(response)
        return tuple(sorted(found))

    def _next_page(self, response: requests.Response) -> str | None:
        link = _NEXT.search(response.headers.get("Link", "")[:8192])
        if link is None:
            return None
        url = follow(str(response.url), link[1], self._client.origin)
        if Origin.of(url) != self._client.origin:
            raise TransportError(f"{self.place}: expected the next page at {self._client.origin}, "
                                 f"got a Link to {Origin.of(url)}")
        return url

    def _put(self, name: str, manifest: Manifest | Index, headers: Mapping[str, str] | None = None) -> None:
        what = f"manifest {manifest.digest.short}"
        response = self._client.call(Call(
            method="PUT", path=f"manifests/{name}", what=what, actions=PUSH, body=manifest.raw, commits=True,
            headers={"Content-Type": manifest.media_type, **(headers or {})}, accept=frozenset({200, 201, 202, 412})))
        if response.status_code == HTTPStatus.PRECONDITION_FAILED:
            raise Conflict(f"{self.place}: {name}: expected it unchanged, got a new one",
                           hint="someone else pushed at the same moment; look at what is there now")
        check_stored(response, manifest.digest, what=what)
        if isinstance(manifest, Manifest) and manifest.subject is not None and "OCI-Subject" not in response.headers:
            with contextlib.suppress(TransportError):  # a registry may forbid other tags; this one is for people
                self._list_as_referrer(manifest, manifest.subject)

    def _list_as_referrer(self, manifest: Manifest, subject: Descriptor) -> None:
        """Add the manifest to the index under its subject's tag (distribution-spec: referrers tag schema).

        Registries without the referrers API leave that to the client. The index is a help for people and other tools;
        nothing here trusts it, so it is no harm when two clients write it at once.
        """
        tag = f"{subject.digest.algorithm}-{subject.digest.hex}"
        listed: tuple[Descriptor, ...] = ()
        with contextlib.suppress(NotFound, MalformedInput):
            found = parse_manifest(self.fetch_manifest(tag))
            listed = found.manifests if isinstance(found, Index) else ()
        entry = replace(manifest.descriptor, artifact_type=manifest.artifact_type)
        if entry.digest not in {other.digest for other in listed}:
            self._put(tag, make_index((*listed, entry)))


def _check_digest(raw: bytes, want: Digest, *, what: str) -> None:
    hasher = want.hasher()
    hasher.update(raw)
    if hasher.hexdigest() != want.hex:
        raise DigestMismatch(f"{what}: expected {want}, got {want.algorithm}:{hasher.hexdigest()}",
                             hint="the content was altered in storage or on the way; do not use it")


def _short(selector: str | Digest) -> str:
    return selector.short if isinstance(selector, Digest) else selector
