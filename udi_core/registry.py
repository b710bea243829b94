"""A client for the distribution protocol: manifests and blobs over HTTP, and everything that can go wrong there.

Source: OCI distribution-spec 1.1; Docker's "Token Authentication Specification".
"""

from __future__ import annotations

import email.utils
import ipaddress
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from udi_core import digest as digests
from udi_core.credentials import Credential, Credentials
from udi_core.errors import AccessDenied, CorruptImage, ImageNotFound, RegistryError
from udi_core.manifest import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor

#: Manifests are small; a registry that sends more is broken or hostile (distribution-spec suggests 4 MiB).
MANIFEST_LIMIT = 4 << 20
_ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two packets
_RETRIES = 6
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK = 1 << 20
_CHALLENGE = re.compile(r'([a-zA-Z_]+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How to reach registries; see :class:`udi_core.config.Config` for the meaning of each."""

    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    insecure: tuple[str, ...] = ()
    ca_file: str = ""
    connections: int = 4


class RegistryClient:
    """Reads one repository.  Safe to use from several threads; a context manager that closes its connections.

    Every base URL of the registry's mirrors is tried in order, the registry itself last, and the first one that
    has the manifest serves the blobs too.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        options: RegistryOptions,
        credentials: Credentials,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.registry, self.repository = registry, repository
        self._bases = [*options.mirrors.get(registry, ()), base_url(registry, options.insecure)]
        self._base = self._bases[0]
        self._credentials = credentials
        self._sleep = sleep
        self._tokens: dict[str, str] = {}
        self._lock = threading.Lock()
        self._session = requests.Session()
        # trust_env would let requests send ~/.netrc passwords to any registry; proxies are asked for below.
        self._session.auth = _no_netrc
        if options.ca_file:
            self._session.verify = options.ca_file
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=options.connections + 2)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *unused: object) -> None:
        self._session.close()

    def ping(self) -> None:
        """Ask for the API's root, with authentication: whether the credentials are right (distribution-spec, end-1).

        Raises:
            AccessDenied: they are not.
            RegistryError: the registry cannot be reached.
        """
        self._get("", {}).close()

    def manifest(self, reference: str) -> tuple[bytes, str, str]:
        """Raw bytes, media type and digest of a manifest or index, by tag or digest.

        Raises:
            ImageNotFound: no mirror has it.
            AccessDenied: the credentials do not suffice.
            RegistryError: the registry cannot be reached.
            CorruptImage: the bytes are not what the digest promises.
        """
        failures: list[RegistryError] = []
        for base in self._bases:
            self._base = base
            try:
                return self._manifest(reference)
            except RegistryError as error:
                failures.append(error)
        raise failures[-1] if len(failures) == 1 else _combine(failures, self.registry)

    def _manifest(self, reference: str) -> tuple[bytes, str, str]:
        with self._get(f"manifests/{reference}", {"Accept": _ACCEPT}) as response:
            raw = response.raw.read(MANIFEST_LIMIT + 1, decode_content=True)
            if len(raw) > MANIFEST_LIMIT:
                raise CorruptImage(f"The manifest of {self._name(reference)} is larger than {MANIFEST_LIMIT} bytes")
            media_type = response.headers.get("Content-Type", "")
            promised = reference if digests.is_digest(reference) else response.headers.get("Docker-Content-Digest", "")
        if promised and digests.is_digest(promised):
            digests.check(raw, promised, f"The manifest of {self._name(reference)}")
        return raw, media_type, promised or digests.of(raw)

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob (an image config), whole and checked."""
        if descriptor.size > MANIFEST_LIMIT:
            raise CorruptImage(f"The config {descriptor.digest} is larger than {MANIFEST_LIMIT} bytes")
        return b"".join(self.stream(descriptor))

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes in order, checked at the end; a connection that breaks off is resumed where it broke.

        Raises:
            RegistryError: it cannot be resumed any more.
            CorruptImage: at the end, if size or digest differ.
        """
        return digests.checked(self._chunks(descriptor), descriptor.digest, f"Blob {descriptor.digest}")

    def _chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        done, failures = 0, 0
        while done < descriptor.size or descriptor.size == 0:
            try:
                with self._get(f"blobs/{descriptor.digest}", _range(done)) as response:
                    skip = done if response.status_code == 200 else 0  # Range was ignored
                    while chunk := response.raw.read(_CHUNK, decode_content=False):
                        if skip:
                            skip, chunk = max(0, skip - len(chunk)), chunk[skip:]
                            if not chunk:
                                continue
                        done += len(chunk)
                        failures = 0
                        if done > descriptor.size:
                            raise _wrong_size(descriptor, done)
                        yield chunk
                if descriptor.size == 0 or done == descriptor.size:
                    return
                raise OSError(f"it ended after {done} of {descriptor.size} bytes")
            except (
                OSError,
                urllib3.exceptions.HTTPError,
            ) as error:  # requests' and urllib3's errors; a cut is worth another try
                failures += 1
                if failures > _RETRIES:
                    raise RegistryError(
                        f"The registry {self.registry} broke off and could not be resumed",
                        f"Blob {descriptor.digest}, {done} of {descriptor.size} bytes: {_reason(error)}",
                        "Try again later; what was finished is kept.",
                    ) from error
                self._sleep(_backoff(failures))

    def _get(self, path: str, headers: Mapping[str, str]) -> requests.Response:
        """One GET below the repository, with authentication, retries and safe redirects; the caller closes it."""
        url = f"{self._base}/v2/{self.repository}/{path}" if path else f"{self._base}/v2/"
        renewed = False
        for attempt in range(_RETRIES + 1):
            last = attempt == _RETRIES
            try:
                response = self._redirected(url, headers)
            except (OSError, urllib3.exceptions.HTTPError) as error:
                if last or isinstance(error, requests.exceptions.SSLError):
                    raise self._unreachable(error) from error
                if isinstance(error, requests.exceptions.ConnectionError) and attempt >= 2 and _refused(error):
                    raise self._unreachable(error) from error
                self._sleep(_backoff(attempt + 1))
                continue
            status = response.status_code
            if status in (200, 206):
                return response
            if status == 401 and not renewed:
                # Also in the middle of a pull: tokens live for minutes, large layers for longer.
                renewed = True
                self._authenticate(response.headers.get("WWW-Authenticate", ""))
            elif status in _RETRY_STATUS and not last:
                self._sleep(_retry_after(response) or _backoff(attempt + 1))
            else:
                raise self._refusal(response, path)
            response.close()
        raise AssertionError("the last attempt returns or raises")

    def _redirected(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Follow redirects by hand: the credentials go to the registry's own origin only."""
        origin = _origin(self._base)
        for _ in range(6):
            sent = {"Accept-Encoding": "identity", **headers}
            with self._lock:
                token = self._tokens.get(self._base)
            if token and _origin(url) == origin:
                sent["Authorization"] = token
            response = self._session.get(url, headers=sent, stream=True, timeout=_TIMEOUT, allow_redirects=False)
            if not response.is_redirect:
                return response
            target = urllib.parse.urljoin(url, response.headers["Location"])
            response.close()
            if url.startswith("https:") and not target.startswith("https:"):
                raise RegistryError(
                    f"The registry {self.registry} redirects to an unencrypted address",
                    f"From {_origin(url)} to {_origin(target)}.",
                    "Ask the registry's owner to mend it; UDI does not follow.",
                )
            url = target
        raise RegistryError(f"The registry {self.registry} redirects in a circle", _origin(url))

    def _authenticate(self, challenge: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        fields_ = {key.lower(): value for key, value in _CHALLENGE.findall(rest)}
        credential = self._credentials.find(self.registry) if self._base == self._bases[-1] else None
        if credential is None and self._base != self._bases[-1]:
            credential = self._credentials.find(urllib.parse.urlsplit(self._base).netloc)
        if scheme.lower() == "basic":
            if credential is None:
                raise self._denied("It wants a user name and a password.")
            token = credential.basic()
        elif scheme.lower() == "bearer" and fields_.get("realm"):
            token = "Bearer " + self._bearer(fields_, credential)
        else:
            raise self._denied(f"It wants authentication by {scheme or 'an unnamed scheme'}, which UDI does not know.")
        with self._lock:
            self._tokens[self._base] = token

    def _bearer(self, challenge: Mapping[str, str], credential: Credential | None) -> str:
        realm = challenge["realm"]
        if self._base.startswith("https:") and not realm.startswith("https:"):
            raise self._denied("It sends passwords to an unencrypted token server.")
        query = {"service": challenge.get("service", "")}
        if self.repository:
            query["scope"] = f"repository:{self.repository}:pull"
        try:
            if credential is not None and credential.identity_token:
                form = {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": "udi"}
                response = self._session.post(realm, data={**form, **query}, timeout=_TIMEOUT, allow_redirects=False)
            else:
                headers = {} if credential is None else {"Authorization": credential.basic()}
                response = self._session.get(
                    realm, params=query, headers=headers, timeout=_TIMEOUT, allow_redirects=False
                )
        except requests.RequestException as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self._denied(f"Its token server answered with status {response.status_code}.")
        try:
            document: dict[str, Any] = response.json()
            token = document.get("token") or document["access_token"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"The token server of {self.registry} sent no token", _origin(realm)) from error
        return str(token)

    def _refusal(self, response: requests.Response, path: str) -> RegistryError:
        status, name = response.status_code, self._name(path.partition("/")[2])
        said = _said(response)
        response.close()
        if status in (401, 403):
            return self._denied(said)
        if status == 404:
            return ImageNotFound(
                f"{name} does not exist, or is private",
                said or f"{_origin(self._base)} answered 404.",
                "Check the spelling of repository and tag; for a private image: udi login " + self.registry,
            )
        return RegistryError(f"The registry {self.registry} answered with status {status}", said, "Try again later.")

    def _denied(self, details: str) -> AccessDenied:
        return AccessDenied(
            f"The registry {self.registry} denies access to {self.repository}",
            details,
            f"Log in with an account that may pull it: udi login {self.registry}",
        )

    def _unreachable(self, error: Exception) -> RegistryError:
        return RegistryError(
            f"The registry {self.registry} cannot be reached",
            f"{_origin(self._base)}: {_reason(error)}",
            "Check the name and the network; compute nodes often have none: pull on a login node first.",
        )

    def _name(self, reference: str) -> str:
        return f"{self.registry}/{self.repository}{'@' if ':' in reference else ':'}{reference}"


def base_url(registry: str, insecure: tuple[str, ...] = ()) -> str:
    """The base URL of a registry: plain HTTP for loopback and where the configuration says so, else HTTPS."""
    host = registry
    if registry == "docker.io":
        host = "registry-1.docker.io"  # the API of Docker Hub is not where its name says
    plain = registry in insecure or is_loopback(registry)
    return f"{'http' if plain else 'https'}://{host}"


def is_loopback(registry: str) -> bool:
    """Whether a registry's host is this machine: traffic that no network sees."""
    host = urllib.parse.urlsplit("//" + registry).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _range(start: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-"} if start else {}


def _wrong_size(descriptor: Descriptor, found: int) -> CorruptImage:
    return CorruptImage(
        f"Blob {descriptor.digest} is not what its digest promises",
        f"expected {descriptor.size} bytes, found at least {found}",
        "The registry, or a proxy on the way, damages data.",
    )


def _backoff(attempt: int) -> float:
    """Seconds to wait: exponential with jitter, so that a thousand nodes do not come back at once."""
    return float(min(30.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311


def _retry_after(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return min(float(value), 120.0)
    try:
        return min(max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()), 120.0)
    except (TypeError, ValueError):
        return 0.0


def _refused(error: Exception) -> bool:
    return "refused" in str(error) or "resolve" in str(error)


def _origin(url: str) -> str:
    """Scheme, host and port: all that may be shown of a URL, which may carry a password or a signature."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words, without the URL that requests puts into its messages."""
    seen: BaseException = error
    while True:
        inner = seen.__cause__ or seen.__context__ or next((a for a in seen.args if isinstance(a, BaseException)), None)
        inner = getattr(seen, "reason", None) if isinstance(getattr(seen, "reason", None), BaseException) else inner
        if inner is None or inner is seen:
            break
        seen = inner
    return f"{type(seen).__name__}: {str(seen).rpartition(': ')[2] or seen}"


def _said(response: requests.Response) -> str:
    """The registry's own words (distribution-spec, "Error Codes"), if it sent any."""
    try:
        body = response.raw.read(65536, decode_content=True)
        import json

        errors = json.loads(body)["errors"]
        return "; ".join(f"{each.get('code')}: {each.get('message')}" for each in errors)[:500]
    except Exception:
        return f"status {response.status_code}"


def _combine(failures: list[RegistryError], registry: str) -> RegistryError:
    """One error of many mirrors' errors: the most telling class, and all of their words."""
    kind = max(failures, key=lambda error: (isinstance(error, ImageNotFound), isinstance(error, AccessDenied)))
    details = "\n".join(f"{error.brief}: {error.details}" for error in failures)
    return type(kind)(f"Neither {registry} nor its mirrors have the image", details, failures[-1].hint)
