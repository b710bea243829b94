"""HTTP as registries need it: one pool of connections, the site's CA, proxies, patience; and no secret in a message.

Sources: RFC 9110 (Retry-After, redirection), requests' documentation of the environment variables that it reads.
"""

from __future__ import annotations

import email.utils
import errno
import http.cookiejar
import ipaddress
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import requests
import requests.utils
import urllib3
from requests.adapters import HTTPAdapter

from udi_core.errors import ConfigError

#: What a connection that breaks, stalls or is refused raises; another try may succeed.
BROKEN = (OSError, urllib3.exceptions.HTTPError)  # requests' own errors are OSErrors

RETRIES = 6
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two packets
_LONGEST_WAIT = 120.0  # seconds; a registry that wants more is as good as down
_USERINFO = re.compile(r"//[^/@\s]+@")
_QUERY = re.compile(r"\?[^\s'\")]*")
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Web:
    """Connections to registries and to where they redirect.  Safe to use from several threads.

    Args:
        insecure: ``host`` or ``host:port`` that may be spoken to by plain HTTP; loopback always may.
        ca_file: PEM file of certificate authorities beside the system's, or "".
        connections: how many may be kept open to one host.
        pause: waits some seconds; the default ends early when the object is closed.
    """

    def __init__(
        self,
        *,
        insecure: tuple[str, ...] = (),
        ca_file: str = "",
        connections: int = 4,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._insecure, self._ca_file, self._connections = insecure, ca_file, connections
        self._closed = threading.Event()
        self.pause = pause or self._closed.wait
        self._lock = threading.Lock()
        self._session = requests.Session()
        # With it, requests would send passwords of ~/.netrc to any host, and prefer REQUESTS_CA_BUNDLE to ca_file.
        self._session.trust_env = False
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers = requests.structures.CaseInsensitiveDict({"User-Agent": "udi"})
        self._session.mount("http://", HTTPAdapter(pool_maxsize=connections + 2))
        self._bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        self._secure = False

    def close(self) -> None:
        """End all waiting, and close the connections that nobody reads from.  Idempotent."""
        self._closed.set()
        self._session.close()

    def allowed(self, url: str, sender: str) -> bool:
        """Whether a URL may be asked to which the server at ``sender`` sends us.

        HTTPS, or plain HTTP to loopback or where it is configured.  But what listens on this machine is nothing that a
        server elsewhere may have us ask.
        """
        if is_loopback(host_of(url)) and not is_loopback(host_of(sender)):
            return False
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "https":
            return True
        return parts.scheme == "http" and may_be_plain(host_of(url), self._insecure)

    def send(self, method: str, url: str, **options: Any) -> requests.Response:
        """One request, one answer: redirects are not followed, and the body is not read yet."""
        if url.startswith("https:"):
            self._prepare_tls()
        return self._session.request(
            method,
            url,
            stream=True,
            timeout=_TIMEOUT,
            allow_redirects=False,
            verify=self._bundle,
            proxies=_proxies(url),
            **options,
        )

    def persist(self, ask: Callable[[], requests.Response]) -> requests.Response:
        """Ask until there is an answer that asking again would not change; at most seven times.

        Waits longer each time, or as long as the registry wishes; what says "no such host" or "nobody listens" is
        asked only thrice, for people who mistyped a name wait at a terminal.

        Raises:
            OSError, urllib3.exceptions.HTTPError: of the last try.
        """
        for attempt in range(1, RETRIES + 1):
            try:
                response = ask()
            except BROKEN as error:
                final = isinstance(error, requests.exceptions.SSLError) or refused_by_proxy(error)
                if final or (attempt >= 3 and _nobody_there(error)):
                    raise
                wish = 0.0
            else:
                if response.status_code not in _RETRY_STATUS:
                    return response
                wish = retry_after(response.headers)
                response.close()
            self.pause(max(wish, backoff(attempt)))
        return ask()

    def _prepare_tls(self) -> None:
        with self._lock:
            if self._secure:
                return
            if isinstance(self._bundle, str) and not os.path.exists(self._bundle):
                raise ConfigError(
                    f"The CA bundle {self._bundle} does not exist",
                    "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names it.",
                    "Correct the variable, or unset it.",
                )
            # The system's authorities too: a site installs its own there, and requests knows only certifi's.
            context = ssl.create_default_context()
            if self._ca_file:
                try:
                    context.load_verify_locations(self._ca_file)
                except OSError as error:
                    raise ConfigError(
                        f"The CA file {self._ca_file} cannot be read",
                        str(error),
                        "Name a PEM file with ca_file in the configuration, or with UDI_CA_FILE.",
                    ) from error
            self._session.mount("https://", _TlsAdapter(context, pool_maxsize=self._connections + 2))
            self._secure = True


class _TlsAdapter(HTTPAdapter):
    def __init__(self, context: ssl.SSLContext, **options: Any) -> None:
        self._context = context
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **options)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **options)


def may_be_plain(host: str, insecure: tuple[str, ...] = ()) -> bool:
    """Whether ``host`` or ``host:port`` may be spoken to by plain HTTP."""
    return host in insecure or _hostname(host) in insecure or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether ``host`` or ``host:port`` is this machine: traffic that no network sees."""
    name = _hostname(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    """``host`` or ``host:port`` of a URL."""
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


def _hostname(host: str) -> str:
    return urllib.parse.urlsplit("//" + host).hostname or ""


def _proxies(url: str) -> dict[str, str]:
    # A proxy has no business with this machine's own ports, whether no_proxy says so or not.
    if is_loopback(host_of(url)):
        return {}
    return dict(requests.utils.get_environ_proxies(url))


def refused_by_proxy(error: BaseException) -> bool:
    """Whether a proxy said no to a tunnel, which asking again does not change."""
    return "Tunnel connection failed: 4" in str(_innermost(error))  # http.client tells it by this text only


def _nobody_there(error: BaseException) -> bool:
    inner = _innermost(error)
    return isinstance(inner, (ConnectionRefusedError, socket.gaierror)) or (
        isinstance(inner, OSError) and inner.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    )


def backoff(attempt: int) -> float:
    """Seconds to wait after a failure: exponential with jitter, so that a thousand nodes do not come back at once."""
    seconds: float = min(30.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
    return seconds


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a registry asks to wait, as a number or as a date (RFC 9110, 10.2.3); 0 if it does not."""
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return min(float(value), _LONGEST_WAIT)
    try:
        return min(max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()), _LONGEST_WAIT)
    except (TypeError, ValueError):
        return 0.0


def body(response: requests.Response, limit: int) -> bytes:
    """The first ``limit`` bytes of a small document, and one more if it is longer.

    A server may compress without being asked, and a few bytes may stand for gigabytes: urllib3 would hold them all.

    Raises:
        OSError, urllib3.exceptions.HTTPError: it breaks off, or cannot be decompressed.
    """
    raw = bytes(response.raw.read(limit + 1, decode_content=False))
    if response.headers.get("Content-Encoding", "identity").lower() not in ("gzip", "x-gzip", "deflate"):
        return raw
    try:
        return zlib.decompressobj(wbits=47).decompress(raw, limit + 1)  # 32 + 15: gzip or zlib, whichever it is
    except zlib.error as error:
        raise urllib3.exceptions.DecodeError(f"it cannot be decompressed: {error}") from error


def origin(url: str) -> str:
    """Scheme, host and port: all that may be shown of a URL, which may carry a password or a signature."""
    return f"{urllib.parse.urlsplit(url).scheme}://{host_of(url)}"


def scrub(text: str) -> str:
    """Words of others without passwords, signatures and terminal controls."""
    return _CONTROL.sub(" ", _QUERY.sub("?…", _USERINFO.sub("//…@", text)))


def reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    inner = _innermost(error)
    return scrub(_ERRNO.sub("", str(inner)) or type(inner).__name__)


def _innermost(error: BaseException) -> BaseException:
    # requests wraps urllib3's errors, and those wrap the system's: in args, in reason, or as cause.
    for _ in range(10):
        inside = [*error.args, getattr(error, "reason", None), error.__cause__]
        inner = next((each for each in inside if isinstance(each, BaseException)), None)
        if inner is None:
            break
        error = inner
    return error
