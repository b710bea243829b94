"""Every error that UDI raises, and the exit code that each one becomes.

An error has three parts: ``brief`` (what happened, one line), ``details`` (the evidence) and ``hint``
(what to do next).  Library code raises; only ``udi_core.cli`` prints and exits.

::

    UdiError                 70  EX_SOFTWARE
    ├── UsageError            2  the command line is wrong
    │   └── InvalidReference  2  an image reference that cannot be parsed
    ├── ConfigError          78  EX_CONFIG
    ├── PolicyError          77  EX_NOPERM: the site forbids it
    ├── ToolMissing          69  EX_UNAVAILABLE: a program is not installed
    ├── ToolFailed           70  a program failed
    ├── RegistryError        69  EX_UNAVAILABLE: registry down, cut, or answering nonsense
    │   ├── AccessDenied     77  EX_NOPERM: 401 or 403
    │   └── ImageNotFound    66  EX_NOINPUT: no such image, tag or file
    ├── UnsupportedImage     65  EX_DATAERR: schema 1, artifacts, another architecture
    ├── CorruptImage         65  EX_DATAERR: digest mismatch, truncated or malformed data
    │   └── HostileImage     65  a name that escapes, a bomb
    ├── StoreError           73  EX_CANTCREAT: read-only or damaged store
    │   ├── StoreFull        74  EX_IOERR: no space, no quota
    │   ├── ImageAbsent      66  EX_NOINPUT: not in the store
    │   └── LeaseLost        75  EX_TEMPFAIL: another node took this pull over
    ├── OutputLost           74  EX_IOERR: standard output cannot be written
    ├── MountError           71  EX_OSERR: no mount backend works on this node
    └── LaunchError         125  the sandbox could not be built
        ├── NotExecutable   126  found in the image, but cannot be executed
        └── CommandNotFound 127  not in the image

Numbers are those of sysexits(3), except for programs run in an image, which follow docker-run(1): the
program's own status, or 125, 126, 127.  ``udi run`` and ``udi shell`` turn every other code into 125, so
that a program's own status can be told from UDI's failure.
"""

from __future__ import annotations


class UdiError(Exception):
    """Base of all errors.  ``str(error)`` is the three parts, one below the other.

    Attributes:
        usual_hint: what to do next, where an error of this class does not say it better.
    """

    exit_code = 70
    usual_hint = "udi doctor looks this machine over."

    def __init__(self, brief: str, details: str = "", hint: str = "") -> None:
        super().__init__(brief, details, hint)
        self.brief = brief
        self.details = details
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.brief, self.details, self.hint) if part)


class UsageError(UdiError):
    """The caller asked for something that makes no sense."""

    exit_code = 2
    usual_hint = "See: udi --help"


class InvalidReference(UsageError):
    """An image reference that cannot be parsed; ``details`` names the part that is wrong."""


class ConfigError(UdiError):
    """A configuration value that is missing or malformed; ``details`` names the file and the key."""

    exit_code = 78
    usual_hint = "udi config show says where each value comes from."


class PolicyError(UdiError):
    """The site's policy forbids what was asked."""

    exit_code = 77
    usual_hint = "Ask who keeps the site's configuration; udi config show prints its policy."


class ToolMissing(UdiError):
    """A program that is needed is not installed."""

    exit_code = 69
    usual_hint = "udi doctor says what is missing, and how to get it."


class ToolFailed(UdiError):
    """A program that was run failed; ``details`` holds the end of what it printed."""


class RegistryError(UdiError):
    """A registry cannot be reached, broke off, or does not speak the distribution protocol."""

    exit_code = 69
    usual_hint = "Try again; if it stays, ask who runs the registry."


class AccessDenied(RegistryError):
    """The registry refused the credentials, or wants some."""

    exit_code = 77


class ImageNotFound(RegistryError):
    """No such repository, tag, digest or local file."""

    exit_code = 66


class UnsupportedImage(UdiError):
    """A manifest that is no image UDI can run: schema 1, an artifact, another architecture."""

    exit_code = 65
    usual_hint = "Ask who makes the image for an ordinary OCI or Docker image."


class CorruptImage(UdiError):
    """Bytes that are not what their digest promises, or that cannot be decoded."""

    exit_code = 65
    usual_hint = "Pull it again; if it stays, the image is damaged where it comes from."


class HostileImage(CorruptImage):
    """A layer that tries to reach outside the image or to exhaust the machine."""

    usual_hint = "Do not use this image, and tell who made it."


class StoreError(UdiError):
    """The store cannot be written, or what it holds is damaged."""

    exit_code = 73


class StoreFull(StoreError):
    """No space or no quota left."""

    exit_code = 74


class ImageAbsent(StoreError):
    """The image is not in the store."""

    exit_code = 66


class LeaseLost(StoreError):
    """Somebody else took a lease over while its holder slept."""

    exit_code = 75


class OutputLost(UdiError):
    """Standard output cannot be written, so that what was asked for did not arrive."""

    exit_code = 74


class MountError(UdiError):
    """No backend could mount the image; ``details`` has one line for each backend and its reason."""

    exit_code = 71
    usual_hint = ""


class LaunchError(UdiError):
    """The sandbox could not be built."""

    exit_code = 125
    usual_hint = "udi doctor says what this node lacks."


class NotExecutable(LaunchError):
    """The command is in the image, but cannot be executed."""

    exit_code = 126
    usual_hint = "Look at its mode and its first line: udi shell REF"


class CommandNotFound(LaunchError):
    """The command is not in the image."""

    exit_code = 127
    usual_hint = "Look around in the image: udi shell REF"
