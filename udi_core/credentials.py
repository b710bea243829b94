"""Docker's auth files and credential helpers: who we are at each registry.

Sources: docker-login(1); containers-auth.json(5); github.com/docker/docker-credential-helpers, its README.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from udi_core.errors import ConfigError, ToolFailed, ToolMissing

_DOCKER_HUB = "https://index.docker.io/v1/"
_NO_ENTRY = b"credentials not found"  # what helpers print for a registry that they do not know
_BAD_FILE = "Mend it, or remove it and log in again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What proves who we are; ``repr`` shows no secret.

    Attributes:
        username, password: what a person types.
        identity_token: what a token server takes in their place (OAuth2's refresh token).
        registry_token: what the registry itself takes, as it is.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Credential(username={self.username!r}, …)"

    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Credentials:
    """Looks credentials up; files are read at each look-up, so a fresh ``udi login`` is seen at once.

    Args:
        auth_file: the only file to read and write, or "" for the usual places.
        fixed: given for every registry, without looking anything up.

    Attributes:
        excuses: why a helper could not be asked.  That fails nobody's pull of a public image (an auth file copied
            from a laptop often names a helper that the cluster lacks), but explains a refusal.
    """

    def __init__(
        self, auth_file: str = "", environ: Mapping[str, str] | None = None, *, fixed: Credential | None = None
    ) -> None:
        self._fixed = fixed
        self._environ = os.environ if environ is None else environ
        self._auth_file = auth_file
        self.excuses: list[str] = []

    def find(self, registry: str, repository: str = "", *, mirror: bool = False) -> Credential | None:
        """The credential for a registry, or None.

        ``UDI_USERNAME`` and ``UDI_PASSWORD`` go first, but never to a ``mirror``: they were meant for the registry
        that the reference names.  Then each auth file in turn, with its helper before its own entries, and the
        entry of a repository or its parents before that of the whole registry.

        Raises:
            ConfigError: an auth file is malformed.
        """
        if self._fixed is not None:
            return self._fixed
        username, password = self._environ.get("UDI_USERNAME"), self._environ.get("UDI_PASSWORD")
        if username and password and not mirror:
            return Credential(username=username, password=password)
        for path in self.files():
            document = _read(path)
            helper = _helper_of(document, registry)
            if helper and (found := self._ask(helper, registry)):
                return found
            for key in [*_parents(registry, repository), *_keys(registry)]:
                entry = _section(document, "auths").get(key)
                if entry and (found := _decode(entry, path, key)):
                    return found
        return None

    def files(self) -> list[str]:
        """The auth files that are read, in order; the first one is where :meth:`save` writes."""
        if self._auth_file:
            return [self._auth_file]
        home = self._environ.get("HOME") or os.path.expanduser("~")
        docker = self._environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
        configuration = self._environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        paths = [os.path.join(docker, "config.json")]
        if self._environ.get("XDG_RUNTIME_DIR"):
            paths.append(os.path.join(self._environ["XDG_RUNTIME_DIR"], "containers", "auth.json"))
        paths.append(os.path.join(configuration, "containers", "auth.json"))
        return paths

    def save(self, registry: str, credential: Credential) -> str:
        """Store a credential (in the registry's helper if it has one) and return where it went.  Atomic.

        Raises:
            ConfigError: the auth file cannot be read or written.
            ToolMissing, ToolFailed: the helper is not there, or refuses.
        """
        path = self.files()[0]
        document = _read(path)
        key = _keys(registry)[0]
        if helper := _helper_of(document, registry):
            body = {"ServerURL": key, "Username": credential.username, "Secret": credential.password}
            _run_helper(helper, "store", json.dumps(body))
            return f"docker-credential-{helper}"
        auth = base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
        document["auths"] = {**_section(document, "auths"), key: {"auth": auth}}
        _write(path, document)
        return path

    def erase(self, registry: str) -> bool:
        """Forget a registry's credential everywhere; False if there was none.  Atomic for each file, idempotent."""
        erased = False
        for path in self.files():
            document = _read(path)
            helper = _helper_of(document, registry)
            if helper and self._ask(helper, registry):
                _run_helper(helper, "erase", _keys(registry)[0])
                erased = True
            auths = _section(document, "auths")
            left = {key: entry for key, entry in auths.items() if key not in _keys(registry)}
            if len(left) != len(auths):
                _write(path, {**document, "auths": left})
                erased = True
        return erased

    def _ask(self, helper: str, registry: str) -> Credential | None:
        for key in _keys(registry)[:2]:
            try:
                reply = _run_helper(helper, "get", key)
                document = json.loads(reply)
                username, secret = str(document["Username"]), str(document["Secret"])
            except (ToolMissing, ToolFailed) as error:
                if _NO_ENTRY.decode() not in error.details.lower():
                    self.excuses.append(f"docker-credential-{helper}: {error.details or error.brief}")
                    return None
                continue
            except (ValueError, LookupError, TypeError):
                self.excuses.append(f"docker-credential-{helper} printed something unreadable")
                return None
            # README of docker-credential-helpers: this user name marks the secret as an identity token.
            if username == "<token>":
                return Credential(identity_token=secret)
            if secret:
                return Credential(username=username, password=secret)
        return None


def _keys(registry: str) -> list[str]:
    """The keys that programs use for a registry; Docker's own is the first."""
    if registry == "docker.io":
        hosts = ["docker.io", "index.docker.io", "registry-1.docker.io"]
        return [_DOCKER_HUB, *hosts, *(f"https://{host}{end}" for host in hosts for end in ("", "/v1", "/v1/", "/v2/"))]
    urls = [f"{scheme}://{registry}{end}" for scheme in ("https", "http") for end in ("", "/", "/v1/", "/v2/")]
    return [registry, *urls]


def _parents(registry: str, repository: str) -> list[str]:
    """Keys of a repository and of the namespaces that it lies in, the closest first (containers-auth.json(5))."""
    parts = repository.split("/") if repository else []
    return [f"{registry}/{'/'.join(parts[:end])}" for end in range(len(parts), 0, -1)]


def _helper_of(document: Mapping[str, Any], registry: str) -> str:
    named = _section(document, "credHelpers")
    return str(next((named[key] for key in _keys(registry) if key in named), document.get("credsStore")) or "")


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name) or {}
    return section if isinstance(section, dict) else {}


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        # A JSON error quotes no content, only where it is.
        raise ConfigError(f"The auth file {path} cannot be read", str(error), _BAD_FILE) from None
    if not isinstance(document, dict):
        raise ConfigError(f"The auth file {path} is not a JSON object", "", _BAD_FILE)
    return document


def _write(path: str, document: Mapping[str, Any]) -> None:
    path = os.path.realpath(path)  # a link to a file elsewhere stays a link
    temporary = ""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".udi-")  # mode 0600
        with open(handle, "w") as file:
            json.dump(document, file, indent="\t")
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise ConfigError(
            f"The auth file {path} cannot be written", error.strerror or "", "Name another one with REGISTRY_AUTH_FILE."
        ) from error


def _decode(entry: Any, path: str, key: str) -> Credential | None:
    malformed = ConfigError(f"The entry {key!r} of {path} is malformed", "", f"Log in again: udi login {key}")
    if not isinstance(entry, dict):
        raise malformed
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            # Docker pads with NULs what it once encoded in a buffer of fixed size.
            username, colon, password = base64.b64decode(entry["auth"]).decode().strip("\0").partition(":")
        except (binascii.Error, ValueError, TypeError):
            colon = ""
        if not colon:
            raise malformed from None
    identity, registry = str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
    if not (username or identity or registry):
        return None
    return Credential(username=username, password=password, identity_token=identity, registry_token=registry)


def _run_helper(helper: str, verb: str, text: str) -> bytes:
    """Run a credential helper; the secret goes by standard input, never by argument."""
    from udi_core import _process

    program = _process.require_tool(f"docker-credential-{helper}", reason="keep the passwords of registries")
    return _process.run([program, verb], input=text.encode(), timeout=60).stdout
