"""One place that serves a repository by the distribution protocol: the registry itself, or a mirror of it.

Source: OCI distribution-spec 1.1, "Pulling manifests" and "Pulling blobs".
"""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Mapping

import requests

from udi_core.credentials import Credential
from udi_core.errors import ConfigError, CorruptImage, ImageNotFound, RegistryError
from udi_core.tokens import Authenticator
from udi_core.web import (
    BROKEN,
    RETRIES,
    Web,
    backoff,
    body,
    host_of,
    may_be_plain,
    origin,
    reason,
    refused_by_proxy,
    scrub,
)

_MAX_REDIRECTS = 6
_LONGEST_ERROR = 65536
_NOT_HERE_ANY_MORE = frozenset({400, 401, 403, 404, 410})  # what storage answers to a signed URL that ran out


class Interrupted(Exception):
    """A body that broke off; what is missing can be asked for."""


class Part:
    """The rest of a response: bytes of a blob from ``start`` on.  Close it, or read it to its end.

    Attributes:
        start: offset in the blob of the first byte that :meth:`read` returns.
        partial: whether the registry heeded the range that was asked for.
    """

    def __init__(self, response: requests.Response, start: int, partial: bool) -> None:
        self._response, self.start, self.partial = response, start, partial

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes, b"" at the end.

        Raises:
            Interrupted: the connection broke off, or nothing came for a minute.
        """
        try:
            return bytes(self._response.raw.read(count, decode_content=False))
        except BROKEN as error:
            raise Interrupted(reason(error)) from error
        except (ValueError, AttributeError) as error:
            raise Interrupted("it was stopped") from error  # a TLS socket that another thread shut down

    def stop(self) -> None:
        """End a :meth:`read` that waits in another thread."""
        # It raises where the connection went back to the pool already; urllib3 before 2.3 cannot do it.
        with contextlib.suppress(OSError, RuntimeError, ValueError, AttributeError):
            self._response.raw.shutdown()

    def close(self) -> None:
        """Give the connection back, or up if there is more to come.  Idempotent."""
        self._response.close()


class Endpoint:
    """Authentication, redirects and patience for one base URL and one repository.  Safe to use from several threads.

    Args:
        registry: the registry that is meant, as messages call it.
        url: ``https://host[:port][/prefix]``; a mirror may keep the repositories of others below a prefix.
        find: looks this place's credential up.
    """

    def __init__(
        self, registry: str, repository: str, url: str, web: Web, find: Callable[[], Credential | None]
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        prefix = parts.path.strip("/")
        prefix = prefix.removeprefix("v2/") if prefix.startswith("v2/") else prefix.removesuffix("v2")
        self.origin = origin(url)
        self._registry, self._web = registry, web
        self._root = f"{parts.scheme}://{parts.netloc}/v2/"
        self._repository = "/".join(each for each in (prefix.rstrip("/"), repository) if each)
        self._authenticator = Authenticator(registry, self._repository, self.origin, web, find)
        self._lock = threading.Lock()
        self._located: dict[str, str] = {}

    def ping(self) -> None:
        """Ask for the API's root, with authentication: whether the credentials are right (distribution-spec, end-1)."""
        self._get(self._root, {}, "").close()

    def read(self, path: str, headers: Mapping[str, str], limit: int) -> tuple[bytes, Mapping[str, str]]:
        """A small document below the repository, and the answer's headers; tried again if it breaks off.

        Raises:
            RegistryError, AccessDenied, ImageNotFound: there is none to be had.
            CorruptImage: it is longer than ``limit`` bytes.
        """
        for attempt in range(1, RETRIES + 1):
            with self._get(self._url(path), headers, path) as response:
                try:
                    raw = body(response, limit)
                except BROKEN as error:
                    if attempt == RETRIES:
                        raise self._unreachable(error) from error
                    self._web.pause(backoff(attempt))
                    continue
            if len(raw) > limit:
                raise CorruptImage(f"{self._name(path)} is larger than {limit} bytes", f"{self.origin} sent it.")
            return raw, response.headers
        raise AssertionError("the last attempt returns or raises")

    def headers(self, path: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers that :meth:`read` would get."""
        with self._get(self._url(path), headers, path, "HEAD") as response:
            return response.headers

    def part(self, digest: str, start: int, stop: int | None) -> Part:
        """Bytes ``start`` to ``stop`` of a blob (None: to its end), or of all the blob, if the registry prefers that.

        Raises:
            RegistryError, AccessDenied: it cannot be had here.
        """
        path = f"blobs/{digest}"
        whole = start == 0 and stop is None
        headers = {} if whole else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        response = self._get(self._url(path), headers, path)
        if response.status_code == 200:
            return Part(response, 0, whole)
        said = response.headers.get("Content-Range", "")
        if response.status_code == 206 and said.startswith(f"bytes {start}-"):
            return Part(response, start, True)
        response.close()
        raise RegistryError(
            f"The registry {self._registry} answers wrongly",
            f"Asked for {headers.get('Range', 'all')} of {digest}, {self.origin} answered with "
            f"status {response.status_code}, range {scrub(said)!r}.",
            "The blob is shorter than the manifest says, or a proxy on the way damages it.",
        )

    def _url(self, path: str) -> str:
        return f"{self._root}{self._repository}/{path}"

    def _get(self, url: str, headers: Mapping[str, str], path: str, method: str = "GET") -> requests.Response:
        """One answer of status 2xx or 416; the caller closes it."""
        renewals = 0
        # Tokens live for minutes, large layers for longer: the 401 in the middle of a pull is as usual as the first.
        while True:
            tried = self._authenticator.header
            try:
                response = self._web.persist(lambda: self._follow(method, url, headers))
            except BROKEN as error:
                raise self._unreachable(error) from error
            if response.status_code in (200, 206, 416):
                return response
            with response:
                # Storage that a redirect leads to must never see what answers a challenge of its own.
                if response.status_code != 401 or renewals == 2 or origin(response.url) != self.origin:
                    raise self._refusal(response, path)
                renewals += 1
                self._authenticator.renew(response.headers.get("WWW-Authenticate", ""), tried)
                if self._authenticator.header == tried:
                    raise self._refusal(response, path)

    def _follow(self, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Follow redirects by hand: the credentials go to this place's own origin and nowhere else.

        Where a blob was found is remembered, so that its other parts cost the registry nothing.
        """
        with self._lock:
            known = self._located.get(url)
        target = known or url
        for _ in range(_MAX_REDIRECTS):
            sent = {"Accept-Encoding": "identity", **headers}
            if self._authenticator.header and origin(target) == self.origin:
                sent["Authorization"] = self._authenticator.header
            response = self._web.send(method, target, headers=sent)
            if known and response.status_code in _NOT_HERE_ANY_MORE:
                response.close()
                with self._lock:
                    self._located.pop(url, None)
                known, target = None, url
                continue
            if not response.is_redirect:
                if target != url and response.ok and method == "GET":
                    with self._lock:
                        self._located[url] = target
                return response
            response.close()
            target = urllib.parse.urljoin(target, response.headers["Location"])
            if not self._web.allowed(target, self.origin):
                raise RegistryError(
                    f"The registry {self._registry} redirects to an address that is unencrypted, or this machine's own",
                    f"From {self.origin} to {origin(target)}.",
                    "UDI does not follow, unless insecure_registries in the configuration names that host.",
                )
        raise RegistryError(f"The registry {self._registry} redirects in a circle", self.origin)

    def _refusal(self, response: requests.Response, path: str) -> RegistryError:
        status, said = response.status_code, _said(response)
        if origin(response.url) != self.origin:
            return RegistryError(
                f"The registry {self._registry} redirects to storage that does not answer",
                f"{origin(response.url)}: status {status}",
                "Try again later; if it stays so, the registry's owner must mend it.",
            )
        if status in (401, 403):
            return self._authenticator.denied(f"{self.origin}: {said}")
        if status == 404 and path.startswith("manifests/"):
            return ImageNotFound(
                f"{self._name(path)} does not exist, or is private",
                f"{self.origin}: {said}",
                f"Check the spelling of repository and tag; for a private image: udi login {self._registry}",
            )
        if status == 429:
            return RegistryError(
                f"The registry {self._registry} says that we ask too often",
                said,
                f"Log in (udi login {self._registry}), use a mirror, or try again later.",
            )
        what = f" for {path}" if path else ""
        return RegistryError(
            f"The registry {self._registry} answered with status {status}",
            f"{self.origin}{what}: {said}",
            "Try again later; if it stays so, the registry's owner must mend it.",
        )

    def _unreachable(self, error: BaseException) -> RegistryError:
        why = reason(error)
        hint = "Check the name and the network; compute nodes often have none: pull on a login node first."
        if "CERTIFICATE_VERIFY_FAILED" in why:
            hint = "If the site has a certificate authority of its own, name its file with ca_file or UDI_CA_FILE."
        if refused_by_proxy(error):
            hint = (
                "The proxy said no: see https_proxy and no_proxy; a password goes into http://USER:PASSWORD@HOST:PORT."
            )
        return RegistryError(f"The registry {self._registry} cannot be reached", f"{self.origin}: {why}", hint)

    def _name(self, path: str) -> str:
        kind, _, reference = path.partition("/")
        if kind == "blobs":
            return f"Blob {reference}"
        return f"{self._registry}/{self._repository}{'@' if ':' in reference else ':'}{reference}"


def base_url(host: str, insecure: tuple[str, ...] = ()) -> str:
    """The URL of ``host[:port][/prefix]``, or of a URL itself: plain HTTP where it may be, else HTTPS."""
    if "://" in host:
        if "@" in urllib.parse.urlsplit(host).netloc:
            raise ConfigError(
                f"The mirror {origin(host)} is configured with a password",
                "Everybody who reads the configuration sees it.",
                f"Remove it from the URL, and write: udi login {host_of(host)}",
            )
        return host
    if host == "docker.io":
        return "https://registry-1.docker.io"  # the API of Docker Hub is not where its name says
    return f"{'http' if may_be_plain(host.partition('/')[0], insecure) else 'https'}://{host}"


def _said(response: requests.Response) -> str:
    """The registry's own words (distribution-spec, "Error Codes"), if it sent any."""
    try:
        errors = json.loads(body(response, _LONGEST_ERROR))["errors"]
        words = "; ".join(f"{each.get('code')}: {each.get('message')}" for each in errors)
        return scrub(words)[:500] or f"status {response.status_code}"
    except (*BROKEN, ValueError, LookupError, TypeError, AttributeError):
        return f"status {response.status_code}"
