"""A client for the distribution protocol: manifests and blobs of one repository, from a registry or its mirrors.

Source: OCI distribution-spec 1.1.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from udi_core import digest as digests
from udi_core.config import Config
from udi_core.credentials import Credential, Credentials
from udi_core.endpoint import Endpoint, Interrupted, Part, base_url
from udi_core.errors import AccessDenied, CorruptImage, ImageNotFound, RegistryError
from udi_core.manifest import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor
from udi_core.progress import ProgressSink, ignore
from udi_core.transfer import Transfer
from udi_core.web import RETRIES, Web, backoff, host_of

#: Manifests and configs are small; a registry that sends more is broken or hostile (distribution-spec says 4 MiB).
MANIFEST_LIMIT = 4 << 20
_ACCEPT = {"Accept": ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))}

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How to reach registries.

    Attributes:
        mirrors: for a registry, what to try in its place, in order: URLs, or ``host[:port][/prefix]``.
        insecure: ``host`` or ``host:port`` that may be spoken to by plain HTTP; loopback always may.
        ca_file: PEM file of certificate authorities beside the system's, or "".
        memory: bytes of layers that may wait in memory, over all layers of the client.
        connections: parts of layers that are fetched at the same time.
    """

    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    insecure: tuple[str, ...] = ()
    ca_file: str = ""
    memory: int = 48 << 20
    connections: int = 4

    @classmethod
    def of(cls, config: Config) -> RegistryOptions:
        return cls(
            mirrors=config.mirrors,
            insecure=config.insecure_registries,
            ca_file=config.ca_file,
            memory=config.memory,
        )


class RegistryClient:
    """Reads one repository; a context manager that closes its connections and ends its threads.

    The mirrors are asked in order, and the registry itself last.  The first one that has the manifest serves the
    blobs too; if it fails in the middle of one, the next one goes on from there.

    Manifests and blobs may be read from several threads, layers (:meth:`stream`) one after the other.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        options: RegistryOptions,
        credentials: Credentials,
        *,
        progress: ProgressSink = ignore,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._registry, self._options = registry, options
        self._credentials, self._progress = credentials, progress
        self._web = Web(
            insecure=options.insecure, ca_file=options.ca_file, connections=options.connections, pause=pause
        )
        places = [*options.mirrors.get(registry, ()), registry]
        urls = [base_url(each, options.insecure) for each in places]
        self._endpoints = [
            Endpoint(registry, repository, url, self._web, self._finder(repository, url, number == len(urls) - 1))
            for number, url in enumerate(urls)
        ]
        self._current = 0
        self._lock = threading.Lock()
        self._order: tuple[Descriptor, ...] = ()
        self._transfer: Transfer | None = None

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *unused: object) -> None:
        self._web.close()
        if self._transfer is not None:
            self._transfer.close()

    def ping(self) -> None:
        """Ask the registry (not a mirror) for the API's root: whether the credentials are right.

        Raises:
            AccessDenied: they are not.
            RegistryError: it cannot be reached.
        """
        self._endpoints[-1].ping()

    def digest(self, reference: str) -> str | None:
        """The digest of a tag's manifest, without the manifest; None if the registry does not say.

        Docker Hub does not count this towards its pull limits.
        """
        headers = self._anywhere(lambda endpoint: endpoint.headers(f"manifests/{reference}", _ACCEPT))
        found = headers.get("Docker-Content-Digest", "")
        return found if digests.is_digest(found) else None

    def manifest(self, reference: str) -> tuple[bytes, str, str]:
        """Raw bytes, media type and digest of a manifest or index, by tag or digest.

        Raises:
            ImageNotFound: neither the registry nor a mirror has it.
            AccessDenied: the credentials do not suffice.
            RegistryError: the registry cannot be reached.
            CorruptImage: the bytes are not what the digest promises.
        """

        def read(endpoint: Endpoint) -> tuple[bytes, str, str]:
            raw, headers = endpoint.read(f"manifests/{reference}", _ACCEPT, MANIFEST_LIMIT)
            given = digests.is_digest(reference)
            promised = reference if given else headers.get("Docker-Content-Digest", "")
            if digests.is_digest(promised):
                digests.check(raw, promised, f"The manifest {reference} from {endpoint.origin}")
            return raw, headers.get("Content-Type", ""), reference if given else digests.of(raw)

        return self._anywhere(read)

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob (an image config), whole and checked.

        Raises:
            RegistryError: it cannot be had.
            CorruptImage: it is not what the digest promises.
        """

        def read(endpoint: Endpoint) -> bytes:
            raw, _ = endpoint.read(f"blobs/{descriptor.digest}", {}, MANIFEST_LIMIT)
            digests.check(raw, descriptor.digest, f"Blob {descriptor.digest} from {endpoint.origin}")
            return raw

        return self._anywhere(read)

    def expect(self, layers: Sequence[Descriptor]) -> None:
        """Say in which order layers will be read, so that those to come are fetched while one is read."""
        self._order = tuple(layers)

    def stream(self, layer: Descriptor) -> Iterator[bytes]:
        """A layer's bytes in order, checked at the end; what breaks off is resumed where it broke.

        Beginning a layer out of the expected order is allowed; what was fetched ahead is then thrown away.

        Raises:
            RegistryError: bytes cannot be had any more.
            CorruptImage: at the end, if size or digest differ.
        """
        if self._transfer is None or not self._transfer.serves(layer):
            if self._transfer is not None:
                self._transfer.close()
            order = self._order[self._order.index(layer) :] if layer in self._order else (layer,)
            self._transfer = Transfer(
                order,
                functools.partial(_Resuming, self),
                budget=self._options.memory,
                connections=self._options.connections,
                progress=self._progress,
            )
        return digests.checked(self._transfer.pieces(), layer.digest, f"Blob {layer.digest} of {self._registry}")

    def _finder(self, repository: str, url: str, itself: bool) -> Callable[[], Credential | None]:
        host = self._registry if itself else host_of(url)
        return lambda: self._credentials.find(host, repository, mirror=not itself)

    def _anywhere(self, ask: Callable[[Endpoint], _Result]) -> _Result:
        """The answer of the first place that has one; later questions go there first."""
        failures: list[RegistryError | CorruptImage] = []
        for number in range(self._current, len(self._endpoints)):
            self._current = number
            try:
                return ask(self._endpoints[number])
            except (RegistryError, CorruptImage) as error:
                failures.append(error)
        raise self._explained(failures)

    def part(self, layer: Descriptor, start: int, stop: int | None) -> tuple[Part, int]:
        """A part of a blob, and the number of the place that it comes from, for :meth:`give_up`."""
        failures: list[RegistryError | CorruptImage] = []
        while True:
            number = self._current
            try:
                return self._endpoints[number].part(layer.digest, start, stop), number
            except RegistryError as error:
                failures.append(error)
                if not self.give_up(number):
                    raise self._explained(failures) from error

    def give_up(self, number: int) -> bool:
        """Turn from a place that fails to the next one; False if there is none."""
        with self._lock:
            if self._current == number and number + 1 < len(self._endpoints):
                self._current = number + 1
            return self._current != number

    def broken(self, layer: Descriptor, position: int, error: Interrupted) -> RegistryError:
        """The error for a blob that broke off too often."""
        return RegistryError(
            f"The registry {self._registry} broke off again and again",
            f"Blob {layer.digest}, {position} of {layer.size} bytes: {error}",
            "Try again later.",
        )

    def pause(self, failures: int) -> None:
        """Wait before the next try."""
        self._web.pause(backoff(failures))

    def _explained(self, failures: Sequence[RegistryError | CorruptImage]) -> RegistryError | CorruptImage:
        """One error of the errors of all places: the registry's own kind, and the words of all."""
        last = failures[-1]
        details = [last.details]
        if len(failures) > 1:
            details = [f"{each.brief}: {each.details}" for each in failures]
        # An excuse explains a refusal, and nothing else.
        if isinstance(last, (AccessDenied, ImageNotFound)):
            details += dict.fromkeys(self._credentials.excuses)
        brief = last.brief if len(failures) == 1 else f"Neither the mirrors of {self._registry} nor it serve the image"
        return type(last)(brief, "\n".join(details), last.hint)


class _Resuming:
    """A :class:`~udi_core.transfer.Reader` that asks again for what a broken connection did not bring."""

    def __init__(self, client: RegistryClient, layer: Descriptor, start: int, stop: int | None) -> None:
        self._client, self._layer, self._position, self._stop = client, layer, start, stop
        self._part: Part | None = None
        self._place = self._failures = 0
        self._stopped = False
        self.heeded = True

    def read(self, count: int) -> bytes:
        while True:
            try:
                piece = self._read(count)
            except Interrupted as error:
                self._drop()
                if self._stopped:
                    raise RegistryError("The transfer was given up") from error
                self._failures += 1
                if self._failures > RETRIES:
                    if not self._client.give_up(self._place):
                        raise self._client.broken(self._layer, self._position, error) from error
                    self._failures = 1
                self._client.pause(self._failures)
                continue
            if piece:
                self._failures = 0
                self._position += len(piece)
            return piece

    def _read(self, count: int) -> bytes:
        if self._part is None:
            start = self._position
            self._part, self._place = self._client.part(self._layer, start, self._stop)
            if self._stopped:
                raise Interrupted("it was stopped")
            if self._stop is not None and not self._part.partial:
                self.heeded, self._stop = False, None  # the rest of the blob comes too, and the caller reads on
            self._skip(start - self._part.start)
        piece = self._part.read(count)
        if not piece and self._position < (self._layer.size if self._stop is None else self._stop):
            raise Interrupted(f"it ended after {self._position} of {self._layer.size} bytes")
        return piece

    def _skip(self, count: int) -> None:
        assert self._part is not None
        while count:
            piece = self._part.read(min(count, 1 << 20))
            if not piece:
                raise Interrupted(f"it ended {count} bytes before where it broke off")
            count -= len(piece)

    def _drop(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def stop(self) -> None:
        self._stopped = True
        if (part := self._part) is not None:
            part.stop()

    def close(self) -> None:
        self._drop()
