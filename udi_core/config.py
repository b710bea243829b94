"""Configuration: defaults, then the site's file, then the user's file, then the environment.

Each value keeps its origin, so that ``udi config show`` and every error can say where it came from.  YAML is
imported only if a file exists that was not read on this node before, since a task should not pay for it.
"""

from __future__ import annotations

import os

from udi_core.documents import parse_once
from udi_core.errors import ConfigError, UsageError
from udi_core.policy import Policy, parse_policy
from udi_core.values import dataclass, field, names

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

SITE_FILE = "/etc/udi/config.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """Volumes and variables that belong together, and that a site gives a name."""

    volumes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, validated.

    Attributes:
        store: directory of the image store, on the file system that all nodes share.
        node_dir: node-local directory for mounts; private to the user.
        mirrors: for a registry, the base URLs to try in its place, in order.
        insecure_registries: ``host[:port]`` that may be spoken to by plain HTTP; loopback always may.
        ca_file: PEM file of further certificate authorities, or "".
        auth_file: Docker's auth file, or "" for the usual places.
        platform: ``os/architecture[/variant]`` to pull, or "" for this machine's.
        compression: squashfs compressor, and its level (0: the tool's default).
        block_size: squashfs block size in bytes.
        memory: bytes of downloaded layers held in memory at once, over all layers of a pull.
        max_entries, max_size, max_ratio: how many entries and bytes of content an image may have, and how many times
            as large as its blob a layer may become, before it counts as a bomb.
        automatic: which of the caller's directories every task sees: ``home tmp scratch tmpdir cwd``.
        volumes: ``SRC:DST[:ro]`` given to every task: the site's, then the user's, then those of modules.
        modules: what the site offers by name (an MPI library, a GPU driver); ``use_modules`` are the ones in use.
        policy: the site's rules.
        from_site: the volumes and mirrors that the site's own file names: the policy does not bind these.
        env: set in every task, above everything else; the site's win over the user's.
        backends: mount backends to try, in order.
        record_dir: where the run records of nodes are collected, or "": nothing is recorded.
        record_durations: a process waits for each task of ``udi run``, so that the record says how it ended.
        idle: seconds that an unused mount is kept for the next task.
        shared_node_dir: where root mounts images for all users of a node; used if root made it.
        strict_modes: FUSE enforces the file modes of an image, as the kernel does.
        trusted_owners: users beside root whose squashfs files root lets the kernel mount; ``"*"`` for all.
    """

    store: str
    node_dir: str
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    insecure_registries: tuple[str, ...] = ()
    ca_file: str = ""
    auth_file: str = ""
    platform: str = ""
    compression: str = "zstd"
    compression_level: int = 3
    block_size: int = 131072
    memory: int = 48 << 20
    max_entries: int = 20_000_000
    max_size: int = 1 << 42
    max_ratio: int = 250
    automatic: tuple[str, ...] = ("home", "tmp", "scratch", "tmpdir", "cwd")
    volumes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    backends: tuple[str, ...] = ("kernel", "fuse", "namespace", "extract")
    idle: float = 60.0
    record_dir: str = ""
    record_durations: bool = False
    shared_node_dir: str = "/run/udi"
    strict_modes: bool = False
    trusted_owners: tuple[str, ...] = ()
    modules: Mapping[str, Module] = field(default_factory=dict)
    use_modules: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    from_site: frozenset[str] = frozenset()
    origins: Mapping[str, str] = field(default_factory=dict)


# YAML key -> (field, kind).  Kinds say how a value is checked and how an environment variable is read.
_KEYS: dict[str, str] = {
    "store": "path",
    "node_dir": "path",
    "mirrors": "mirrors",
    "insecure_registries": "strings",
    "ca_file": "path",
    "auth_file": "path",
    "platform": "platform",
    "compression": "compression",
    "compression_level": "integer",
    "block_size": "block",
    "memory": "size",
    "max_entries": "integer",
    "max_size": "size",
    "max_ratio": "integer",
    "automatic": "directories",
    "volumes": "strings",
    "env": "mapping",
    "backends": "backends",
    "idle": "seconds",
    "record_dir": "path or off",
    "record_durations": "boolean",
    "shared_node_dir": "path",
    "strict_modes": "boolean",
    "trusted_owners": "strings",
    "modules": "modules",
    "use_modules": "strings",
}
_ENVIRONMENT = {
    "UDI_STORE": "store",
    "UDI_NODE_DIR": "node_dir",
    "UDI_CA_FILE": "ca_file",
    "REGISTRY_AUTH_FILE": "auth_file",
    "UDI_PLATFORM": "platform",
    "UDI_BACKENDS": "backends",
    "UDI_INSECURE_REGISTRIES": "insecure_registries",
    "UDI_VOLUMES": "volumes",
    "UDI_IDLE": "idle",
    "UDI_RECORD_DIR": "record_dir",
    "UDI_RECORD_DURATIONS": "record_durations",
    "UDI_MODULES": "use_modules",
}
_LISTS = frozenset({"backends", "directories", "strings"})  # commas separate them in a variable
_ADDED = frozenset({"volumes", "env", "modules"})
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def load_config(environ: Mapping[str, str] | None = None) -> Config:
    """Read all sources of configuration.

    Raises:
        ConfigError: names the file (or variable) and the key that is wrong.
    """
    environ = os.environ if environ is None else environ
    values, origins = _defaults(environ)
    site, user = config_files(environ)
    for path in (site, user):
        for key, value in _read_yaml(path, environ.get("UDI_NODE_DIR") or values["node_dir"]).items():
            if key != "policy":
                _set(values, origins, key, value, path)
            elif path == site:
                values["policy"] = parse_policy(value, path)
                origins["policy"] = path
            else:
                raise ConfigError(
                    f"{path} sets policy", "Only the site's file may.", f"Remove it, or ask who keeps {site}."
                )
        if path == site:
            values["from_site"] = _volumes_and_mirrors(values)
    for variable, key in _ENVIRONMENT.items():
        if environ.get(variable):
            text = environ[variable]
            value = [part for part in text.split(",") if part] if _KEYS[key] in _LISTS else text
            _set(values, origins, key, value, variable)
    _use_modules(values, origins)
    return Config(**values, origins=origins)


def _volumes_and_mirrors(values: dict[str, Any]) -> frozenset[str]:
    modules: dict[str, Module] = values.get("modules", {})
    mirrors: dict[str, tuple[str, ...]] = values.get("mirrors", {})
    groups = (values.get("volumes", ()), *(each.volumes for each in modules.values()), *mirrors.values())
    return frozenset(text for group in groups for text in group)


def _use_modules(values: dict[str, Any], origins: dict[str, str]) -> None:
    modules: dict[str, Module] = values.get("modules", {})
    for name in values.get("use_modules", ()):
        module = modules.get(name)
        if module is None:
            raise ConfigError(
                f"There is no module {name!r}",
                f"{origins['use_modules']} asks for it; the site has: {', '.join(modules) or 'none'}.",
            )
        values["volumes"] = (*values.get("volumes", ()), *module.volumes)
        values["env"] = {**module.env, **values.get("env", {})}


def config_files(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The site's file and the user's, whether they exist or not.

    ``UDI_SITE_CONFIG`` names another site file, for machines that have none: where there is one, a variable
    must not take its place.
    """
    other = environ.get("UDI_SITE_CONFIG", "")
    return other if other and not os.path.exists(SITE_FILE) else SITE_FILE, user_file(environ)


def user_file(environ: Mapping[str, str]) -> str:
    """Where the user's configuration file is, whether it exists or not."""
    if environ.get("UDI_CONFIG"):
        return environ["UDI_CONFIG"]
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(_home(environ), ".config")
    return os.path.join(base, "udi", "config.yaml")


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME")
    if home:
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a user of a container or a directory service that this node does not know
        return "/"


def _defaults(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    scratch, runtime = environ.get("SCRATCH"), environ.get("XDG_RUNTIME_DIR")
    if environ.get("SLURM_JOB_ID"):
        runtime = None  # a login session's: it goes when the user logs out, and prolog and epilog never know it
    state = environ.get("XDG_STATE_HOME") or os.path.join(_home(environ), ".local", "state")
    data = environ.get("XDG_DATA_HOME") or os.path.join(_home(environ), ".local", "share")
    values: dict[str, Any] = {
        "store": os.path.join(scratch or data, "udi"),
        # A runtime directory of a dead login session is still named in the environment of batch jobs.
        "node_dir": os.path.join(runtime, "udi") if runtime and os.path.isdir(runtime) else f"/tmp/udi-{os.getuid()}",  # noqa: S108
        "record_dir": os.path.join(state, "udi", "records"),
    }
    origins = {name: "default" for name in names(Config) if name not in ("origins", "from_site")}
    if scratch:
        origins["store"] = "$SCRATCH"
    return values, origins


def _read_yaml(path: str, node_dir: str) -> dict[str, Any]:
    try:
        found = parse_once(path, node_dir, lambda text: _parse_yaml(text, path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read", error.strerror or str(error)) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"The configuration file {path} is not a mapping",
            f"It is of type {type(found).__name__}.",
            "Write lines of the form  key: value",
        )
    return {str(key): value for key, value in found.items()}


def _parse_yaml(text: bytes, path: str) -> Any:
    import yaml

    try:
        # libyaml's loader, where PyYAML was built with it, is ten times as fast.
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise ConfigError(
            f"The configuration file {path} is not YAML", str(error), "Check indentation and quotes."
        ) from error


def _set(values: dict[str, Any], origins: dict[str, str], key: str, value: Any, origin: str) -> None:
    kind = _KEYS.get(key)
    if kind is None:
        import difflib

        near = difflib.get_close_matches(key, _KEYS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(_KEYS)}"
        raise ConfigError(f"{origin} sets an unknown key", f"The key {key!r} is not known.", hint)
    try:
        checked = _CHECKS[kind](value)
        # What a site mounts and sets stays; a user adds to it.
        if key == "volumes":
            checked = (*values.get(key, ()), *checked)
        elif key in ("env", "modules"):
            checked = {**checked, **values.get(key, {})}
        if key in _ADDED and values.get(key):
            origin = f"{origins[key]} and {origin}"
        values[key] = checked
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{origin} sets {key} to a wrong value", f"{key}: {value!r}: {error}") from error
    origins[key] = origin


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is needed")
    if "\0" in value:
        raise ValueError("it holds a NUL byte")
    return value


def _platform(value: Any) -> str:
    from udi_core.platforms import parse_platform

    try:
        return str(parse_platform(_string(value)))
    except UsageError as error:
        raise ValueError(error.hint) from error


def _path(value: Any) -> str:
    path = os.path.expandvars(os.path.expanduser(_string(value)))
    if "$" in path:
        raise ValueError("it names a variable that is not set")
    if not os.path.isabs(path):
        raise ValueError("an absolute path is needed")
    return os.path.normpath(path)


def _path_or_off(value: Any) -> str:
    return "" if value in (False, "off") else _path(value)


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("a list of texts is needed")
    return tuple(_string(each) for each in value)


def _some_of(*known: str) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        found = _strings(value)
        if unknown := [each for each in found if each not in known]:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return found

    return check


def _one_of(*known: str) -> Callable[[Any], str]:
    return lambda value: _some_of(*known)([value])[0]


def _mapping(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("a mapping is needed")
    if wrong := [key for key, each in value.items() if not isinstance(each, (str, int, float))]:
        raise TypeError(f"{wrong[0]} needs a text")
    if wrong := [key for key in value if not key or "=" in str(key)]:
        raise ValueError(f"{wrong[0]!r} cannot be a variable's name")
    return {_string(key): _string(str(each)) for key, each in value.items()}


def _mirrors(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise TypeError("a mapping of registries to lists of URLs is needed")
    found = {_string(key): _strings([each] if isinstance(each, str) else each) for key, each in value.items()}
    for url in (each for urls in found.values() for each in urls):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} does not begin with http:// or https://")
    return found


def _modules(value: Any) -> dict[str, Module]:
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise TypeError("a mapping of names to volumes and env is needed")
    found = {}
    for name, each in value.items():
        if unknown := set(each) - {"volumes", "env"}:
            raise ValueError(f"{name} has {', '.join(sorted(map(str, unknown)))}; volumes and env are known")
        found[_string(name)] = Module(volumes=_strings(each.get("volumes", [])), env=_mapping(each.get("env", {})))
    return found


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number is needed")
    return _positive(value)


def _positive(value: int) -> int:
    if not 0 <= value < 1 << 63:
        raise ValueError("it must be neither negative nor beyond 64 bits")
    return value


def _size(value: Any) -> int:
    if isinstance(value, int):
        return _integer(value)
    text = _string(value).strip().upper().removesuffix("IB").removesuffix("B")
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("K", "M", "G", "T") else (text, "")
    if not number.isdecimal():
        raise ValueError("a size is needed, such as 64M or 4T")
    return _positive(int(number) * _UNITS[unit])


def _block(value: Any) -> int:
    size = _size(value)
    if size.bit_count() != 1 or not 4096 <= size <= 1 << 20:
        raise ValueError("a power of two from 4K to 1M is needed (mksquashfs(1), -b)")
    return size


def _seconds(value: Any) -> float:
    try:
        seconds = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise ValueError("a number of seconds is needed, 0 or more")
    return seconds


def _boolean(value: Any) -> bool:
    if value in ("0", "1"):  # of a variable
        return bool(value == "1")
    if not isinstance(value, bool):
        raise TypeError("true or false is needed")
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "backends": _some_of("kernel", "fuse", "namespace", "extract"),
    "block": _block,
    "boolean": _boolean,
    "compression": _one_of("gzip", "lz4", "lzo", "xz", "zstd"),
    "directories": _some_of("home", "tmp", "scratch", "tmpdir", "cwd"),
    "platform": _platform,
    "path": _path,
    "path or off": _path_or_off,
    "strings": _strings,
    "mapping": _mapping,
    "mirrors": _mirrors,
    "modules": _modules,
    "integer": _integer,
    "size": _size,
    "seconds": _seconds,
}
