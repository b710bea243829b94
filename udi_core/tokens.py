"""How a registry learns who we are: the challenge of a 401, and the ``Authorization`` that answers it.

Sources: RFC 9110 section 11.6.1; Docker's "Token Authentication Specification" and "OAuth2 Token Authentication".
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import requests

from udi_core.credentials import Credential
from udi_core.errors import AccessDenied, RegistryError
from udi_core.web import BROKEN, Web, body, origin, reason

# One element between commas: a scheme, a parameter, or a scheme with its first parameter.
_ELEMENT = re.compile(
    r'\s*(?:([A-Za-z][\w-]*)(?:\s+|(?=,|$)))?(?:([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]*)))?\s*(?:,|$)'
)
_LONGEST_HEADER = 8192
_LONGEST_TOKEN = 1 << 20


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """The challenges of a ``WWW-Authenticate`` header: scheme -> parameters, all names in lower case."""
    found: dict[str, dict[str, str]] = {}
    scheme = ""
    for element in _ELEMENT.finditer(header[:_LONGEST_HEADER]):
        if element[1]:
            scheme = element[1].lower()
            found[scheme] = {}
        if element[2] and scheme:
            quoted = re.sub(r"\\(.)", r"\1", element[3] or "")
            found[scheme][element[2].lower()] = quoted or element[4] or ""
    return found


class Authenticator:
    """The ``Authorization`` header for one repository at one place.  Safe to use from several threads.

    Args:
        name: the registry, as messages call it.
        repository: what is to be pulled; "" if only the credentials are tried.
        place: the URL of the registry, or of its mirror.
        find: the credential for this place, looked up when it is first wanted.
    """

    def __init__(self, name: str, repository: str, place: str, web: Web, find: Callable[[], Credential | None]) -> None:
        self._name, self._repository, self._place, self._web, self._find = name, repository, place, web, find
        self._lock = threading.Lock()
        self.header = ""

    def renew(self, challenge: str, stale: str) -> None:
        """Answer a 401's challenge; ``stale`` is the header that was refused.

        Of many threads that come with the same stale header (a token ran out), one asks for a new token.

        Raises:
            AccessDenied: there is no credential, a wrong one, or a scheme that UDI does not know.
            RegistryError: the token server cannot be reached, or sends no token.
        """
        with self._lock:
            if self.header == stale:
                self.header = self._answer(parse_challenges(challenge))

    def _answer(self, challenges: dict[str, dict[str, str]]) -> str:
        credential = self._find()
        if "bearer" in challenges:
            if credential is not None and credential.registry_token:
                return f"Bearer {credential.registry_token}"
            return "Bearer " + self._token(challenges["bearer"], credential)
        if "basic" in challenges:
            if credential is None or not credential.username:
                raise self.denied("It wants a user name and a password, and there are none.")
            return credential.basic()
        raise self.denied(f"It wants authentication by {', '.join(challenges) or 'nothing'}, which UDI does not know.")

    def _token(self, challenge: dict[str, str], credential: Credential | None) -> str:
        realm = challenge.get("realm", "")
        if not self._web.allowed(realm, self._place):
            raise self.denied(
                f"It sends us for a token to {origin(realm)}, which is unencrypted or this machine's own."
            )
        wanted = {"service": challenge.get("service", "")}
        # Registries behind a prefix name the repository otherwise than its path does; so their word goes first.
        scope = challenge.get("scope") or (f"repository:{self._repository}:pull" if self._repository else "")
        if scope:
            wanted["scope"] = scope
        try:
            response = self._web.persist(lambda: self._ask(realm, wanted, credential))
        except BROKEN as error:
            raise RegistryError(
                f"The token server of {self._name} cannot be reached",
                f"{origin(realm)}: {reason(error)}",
                "Check the network; compute nodes often have none: pull on a login node first.",
            ) from error
        with response:
            if response.status_code in (400, 401, 403):
                who = f"user {credential.username!r}" if credential and credential.username else "us"
                raise self.denied(f"Its token server refuses {who} (status {response.status_code}).")
            if response.status_code != 200:
                raise RegistryError(
                    f"The token server of {self._name} answered with status {response.status_code}",
                    origin(realm),
                    "Try again later.",
                )
            return self._parse(response, realm)

    def _ask(self, realm: str, wanted: dict[str, str], credential: Credential | None) -> requests.Response:
        if credential is not None and credential.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": "udi"}
            return self._web.send("POST", realm, data={**form, **wanted})
        headers = {"Authorization": credential.basic()} if credential is not None else {}
        return self._web.send("GET", realm, params=wanted, headers=headers)

    def _parse(self, response: requests.Response, realm: str) -> str:
        import json

        try:
            document: dict[str, Any] = json.loads(body(response, _LONGEST_TOKEN))
            token = document.get("token") or document["access_token"]
            if not isinstance(token, str) or not token.isprintable():
                raise TypeError
        except (*BROKEN, ValueError, LookupError, TypeError, AttributeError) as error:
            # The cause could quote the token.
            raise RegistryError(
                f"The token server of {self._name} sent no token", f"{origin(realm)}: {type(error).__name__}"
            ) from None
        return token

    def denied(self, details: str) -> AccessDenied:
        """The error for a place that does not let us in."""
        what = f" to {self._repository}" if self._repository else ""
        return AccessDenied(
            f"The registry {self._name} denies access{what}",
            details,
            f"Log in with an account that may pull it: udi login {self._name}",
        )
