"""Docker's auth file and credential helpers: who we are at each registry.

Source: docker-login(1), containers-auth.json(5), docker-credential-helpers.
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

from udi_core.errors import AccessDenied, ConfigError

_DOCKER_HUB = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What proves who we are; ``repr`` shows no secret."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credential(username={self.username!r}, …)"

    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Credentials:
    """Looks credentials up; files are read at each look-up, so a fresh ``udi login`` is seen at once.

    ``fixed`` is given for every registry, without looking anything up.
    """

    def __init__(
        self, auth_file: str = "", environ: Mapping[str, str] | None = None, *, fixed: Credential | None = None
    ) -> None:
        self._fixed = fixed
        self._environ = os.environ if environ is None else environ
        self._auth_file = auth_file

    def find(self, registry: str) -> Credential | None:
        """The credential for a registry, or None: from its helper, the files' ``auths``, or the default helper."""
        if self._fixed is not None:
            return self._fixed
        username = self._environ.get("UDI_USERNAME")
        password = self._environ.get("UDI_PASSWORD")
        if username and password:
            return Credential(username=username, password=password)
        for path in self.files():
            document = _read(path)
            helper = (document.get("credHelpers") or {}).get(registry) or document.get("credsStore")
            for key in _keys(registry):
                if helper and (found := _ask_helper(helper, key)):
                    return found
                entry = (document.get("auths") or {}).get(key)
                if entry and (found := _decode(entry, path, key)):
                    return found
        return None

    def files(self) -> list[str]:
        """The auth files that are read, in order; the first one is where :meth:`save` writes."""
        if self._auth_file:
            return [self._auth_file]
        home = self._environ.get("HOME", "")
        docker = self._environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
        paths = [os.path.join(docker, "config.json")]
        if self._environ.get("XDG_RUNTIME_DIR"):
            paths.append(os.path.join(self._environ["XDG_RUNTIME_DIR"], "containers", "auth.json"))
        paths.append(os.path.join(home, ".config", "containers", "auth.json"))
        return paths

    def save(self, registry: str, credential: Credential) -> str:
        """Store a credential (in the registry's helper if it has one) and return where it went.  Atomic."""
        path = self.files()[0]
        document = _read(path)
        key = _keys(registry)[0]
        helper = (document.get("credHelpers") or {}).get(registry) or document.get("credsStore")
        if helper:
            body = {"ServerURL": key, "Username": credential.username, "Secret": credential.password}
            _helper(helper, "store", json.dumps(body))
            return f"docker-credential-{helper}"
        auth = base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
        document.setdefault("auths", {})[key] = {"auth": auth}
        _write(path, document)
        return path

    def erase(self, registry: str) -> bool:
        """Forget a registry's credential; False if there was none.  Atomic, idempotent."""
        erased = False
        for path in self.files():
            document = _read(path)
            helper = (document.get("credHelpers") or {}).get(registry) or document.get("credsStore")
            for key in _keys(registry):
                if helper and _ask_helper(helper, key):
                    _helper(helper, "erase", key)
                    erased = True
                if (document.get("auths") or {}).pop(key, None) is not None:
                    _write(path, document)
                    erased = True
        return erased


def _keys(registry: str) -> list[str]:
    """The keys that programs use for a registry; Docker's own is the first."""
    if registry == "docker.io":
        return [_DOCKER_HUB, "docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1"]
    return [registry, f"https://{registry}", f"https://{registry}/v1/", f"https://{registry}/v2/", f"http://{registry}"]


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The auth file {path} cannot be read", str(error), "Mend it, or remove it and log in again."
        ) from None
    if not isinstance(document, dict):
        raise ConfigError(f"The auth file {path} is not a JSON object", "", "Mend it, or remove it and log in again.")
    return document


def _write(path: str, document: Mapping[str, Any]) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".udi-")  # mode 0600
    try:
        with open(handle, "w") as file:
            json.dump(document, file, indent="\t")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _decode(entry: Mapping[str, Any], path: str, key: str) -> Credential | None:
    token = str(entry.get("identitytoken") or "")
    if entry.get("auth"):
        try:
            username, colon, password = base64.b64decode(entry["auth"]).decode().rstrip("\0").partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise ConfigError(
                f"The entry {key!r} of {path} is malformed", "", f"Log in again: udi login {key}"
            ) from None
        return Credential(username=username, password=password, identity_token=token)
    if entry.get("username"):
        return Credential(
            username=str(entry["username"]), password=str(entry.get("password", "")), identity_token=token
        )
    return Credential(identity_token=token) if token else None


def _ask_helper(helper: str, key: str) -> Credential | None:
    reply = _helper(helper, "get", key)
    if reply is None:
        return None
    try:
        document = json.loads(reply)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, KeyError, TypeError):
        raise AccessDenied(f"The credential helper docker-credential-{helper} sent something unreadable") from None
    # docker-credential-helpers: this user name marks the secret as an identity token.
    return (
        Credential(identity_token=secret) if username == "<token>" else Credential(username=username, password=secret)
    )


def _helper(helper: str, verb: str, text: str) -> bytes | None:
    """Run a credential helper; the secret goes by standard input, never by argument.  None: it has no such entry."""
    from udi_core import _process

    program = _process.require_tool(f"docker-credential-{helper}", reason="read the passwords of registries")
    done = _process.run([program, verb], input=text.encode(), check=False, timeout=60)
    return done.stdout if done.returncode == 0 else None
