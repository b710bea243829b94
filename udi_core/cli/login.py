"""``udi login`` and ``udi logout``: Docker's auth file."""

from __future__ import annotations

import argparse
import sys

from udi_core.config import load_config
from udi_core.credentials import Credential, Credentials
from udi_core.errors import InvalidReference, UsageError
from udi_core.reference import ImageReference
from udi_core.registry import RegistryClient, RegistryOptions


def login(arguments: argparse.Namespace) -> int:
    """Ask for (or read) the password, try it, store it.  It never is an argument, which every user could read."""
    registry, username = _registry(arguments.registry), arguments.username
    if arguments.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin is not None and sys.stdin.isatty():
        import getpass

        try:
            username = username or input(f"User name at {registry}: ")
            password = getpass.getpass(f"Password of {username} at {registry}: ")
        except EOFError:  # Ctrl-D
            password = ""
    else:
        raise UsageError("There is no terminal to ask for the password", "", "Give it with: --password-stdin < FILE")
    if not username or not password:
        raise UsageError("A user name and a password are needed", "", "Write: udi login -u NAME REGISTRY")
    config = load_config()
    credential = Credential(username=username, password=password)
    options = RegistryOptions(insecure=config.insecure_registries, ca_file=config.ca_file)
    with RegistryClient(registry, "", options, Credentials(config.auth_file, fixed=credential)) as client:
        client.ping()
    where = Credentials(config.auth_file).save(registry, credential)
    print(f"Logged in to {registry}; the password is in {where}")
    return 0


def logout(arguments: argparse.Namespace) -> int:
    """Forget the password; exit code 1 if there was none."""
    registry = _registry(arguments.registry)
    if Credentials(load_config().auth_file).erase(registry):
        print(f"Logged out of {registry}")
        return 0
    print(f"Not logged in to {registry}")
    return 1


def _registry(text: str) -> str:
    """The host that a person means, who may have copied a URL."""
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/").removesuffix("/v1").removesuffix("/v2")
    hint = "Give its host, for example ghcr.io or registry.site.example:5000."
    try:
        found = ImageReference.parse(f"docker://{name}/x")
    except InvalidReference as error:
        raise UsageError(f"{text!r} is not a registry", error.details, hint) from error
    if found.repository not in ("x", "library/x"):
        raise UsageError(f"{text!r} is not a registry", "", hint)
    return found.registry
