"""``udi login`` and ``udi logout``: Docker's auth file."""

from __future__ import annotations

import argparse
import sys

from udi_core.config import load_config
from udi_core.credentials import Credential, Credentials
from udi_core.errors import UsageError
from udi_core.registry import RegistryClient, RegistryOptions


def login(arguments: argparse.Namespace) -> int:
    """Ask for (or read) the password, try it, store it.  It never is an argument, which every user could read."""
    username = arguments.username
    if arguments.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        import getpass

        username = username or input(f"User name at {arguments.registry}: ")
        password = getpass.getpass(f"Password of {username} at {arguments.registry}: ")
    else:
        raise UsageError("There is no terminal to ask for the password", "", "Give it with: --password-stdin < FILE")
    if not username or not password:
        raise UsageError("A user name and a password are needed", "", "Write: udi login -u NAME REGISTRY")
    config = load_config()
    credential = Credential(username=username, password=password)
    options = RegistryOptions(insecure=config.insecure_registries, ca_file=config.ca_file)
    with RegistryClient(arguments.registry, "", options, Credentials(config.auth_file, fixed=credential)) as client:
        client.ping()
    where = Credentials(config.auth_file).save(arguments.registry, credential)
    print(f"Logged in to {arguments.registry}; the password is in {where}")
    return 0


def logout(arguments: argparse.Namespace) -> int:
    """Forget the password; exit code 1 if there was none."""
    if Credentials(load_config().auth_file).erase(arguments.registry):
        print(f"Logged out of {arguments.registry}")
        return 0
    print(f"Not logged in to {arguments.registry}")
    return 1
