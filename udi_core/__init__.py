"""The core of UDI: pull, flatten, mount and enter images; knows nothing of any workflow engine.

What this package exports is what adapters may use.  Names are imported when they are first used, so that a task
that starts in a warm image does not load the HTTP client.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from typing import Any

    from udi_core import record as _record
    from udi_core import task_files as _task_files
    from udi_core._process import DEVNULL as DEVNULL
    from udi_core._process import PIPE as PIPE
    from udi_core._process import STDOUT as STDOUT
    from udi_core._process import Process as Process
    from udi_core._process import TimeoutExpired as TimeoutExpired
    from udi_core._process import find_tool as find_tool
    from udi_core._process import require_tool as require_tool
    from udi_core._process import run as run
    from udi_core._process import spawn as spawn
    from udi_core.agent import host as _host
    from udi_core.agent import in_image as _in_image
    from udi_core.agent.arguments import pack_arguments as pack_arguments
    from udi_core.agent.function import MAGIC as MAGIC
    from udi_core.agent.function import specify as specify
    from udi_core.agent.host import Agent as Agent
    from udi_core.agent.host import AgentLost as AgentLost
    from udi_core.agent.host import AgentPool as AgentPool
    from udi_core.agent.host import kill_tree as kill_tree
    from udi_core.agent.source import NotPortable as NotPortable
    from udi_core.batch import Job as Job
    from udi_core.cli.parser import Command as Command
    from udi_core.cli.show import lazy_progress as lazy_progress
    from udi_core.cli.show import progress_text as progress_text
    from udi_core.config import Config as Config
    from udi_core.config import config_files as config_files
    from udi_core.config import load_config as load_config
    from udi_core.errors import AccessDenied as AccessDenied
    from udi_core.errors import CommandNotFound as CommandNotFound
    from udi_core.errors import ConfigError as ConfigError
    from udi_core.errors import CorruptImage as CorruptImage
    from udi_core.errors import HostileImage as HostileImage
    from udi_core.errors import ImageAbsent as ImageAbsent
    from udi_core.errors import ImageNotFound as ImageNotFound
    from udi_core.errors import InvalidReference as InvalidReference
    from udi_core.errors import LaunchError as LaunchError
    from udi_core.errors import MountError as MountError
    from udi_core.errors import NotExecutable as NotExecutable
    from udi_core.errors import PolicyError as PolicyError
    from udi_core.errors import RegistryError as RegistryError
    from udi_core.errors import StoreError as StoreError
    from udi_core.errors import StoreFull as StoreFull
    from udi_core.errors import ToolFailed as ToolFailed
    from udi_core.errors import ToolMissing as ToolMissing
    from udi_core.errors import UdiError as UdiError
    from udi_core.errors import UnsupportedImage as UnsupportedImage
    from udi_core.errors import UsageError as UsageError
    from udi_core.host_calls import HostCalls as HostCalls
    from udi_core.image_config import Platform as Platform
    from udi_core.launch import enter as enter
    from udi_core.launch import find as find
    from udi_core.mixed import for_this_node as for_this_node
    from udi_core.mixed import pull_for_nodes as pull_for_nodes
    from udi_core.mount import MountedImage as MountedImage
    from udi_core.mount import NodeMounts as NodeMounts
    from udi_core.mpi import is_rank as is_rank
    from udi_core.node_kind import ancestry as ancestry
    from udi_core.node_kind import check_kind as check_kind
    from udi_core.node_kind import choose_kind as choose_kind
    from udi_core.node_kind import parse_kinds as parse_kinds
    from udi_core.platforms import host_platform as host_platform
    from udi_core.platforms import parse_platform as parse_platform
    from udi_core.programs import find_program as find_program
    from udi_core.progress import Progress as Progress
    from udi_core.progress import ProgressSink as ProgressSink
    from udi_core.progress import ignore as ignore
    from udi_core.pulling import pull as pull
    from udi_core.ranks import calls_for_ranks as calls_for_ranks
    from udi_core.ranks import entering as entering
    from udi_core.ranks import serve_ranks as serve_ranks
    from udi_core.reference import ImageReference as ImageReference
    from udi_core.sandbox import Host as Host
    from udi_core.sandbox import Launch as Launch
    from udi_core.sandbox import LaunchSpec as LaunchSpec
    from udi_core.sandbox import build as build
    from udi_core.sandbox import execute as execute
    from udi_core.sources import open_source as open_source
    from udi_core.sources import resolve as resolve
    from udi_core.standing import stand as stand
    from udi_core.store import ImageStore as ImageStore
    from udi_core.store import PythonInfo as PythonInfo
    from udi_core.store import StoredImage as StoredImage
    from udi_core.volumes import Volume as Volume

    agent_command, agent_support = _host.command, _host.support
    pack, unpack = _in_image.dumps, _in_image.loads
    task_directory = _task_files.prepare
    write_record = _record.write

_EXPORTS = {
    "agent.arguments": "pack_arguments",
    "agent.function": "MAGIC specify",
    "agent.host": "Agent AgentLost AgentPool kill_tree",
    "agent.source": "NotPortable",
    "_process": "DEVNULL PIPE STDOUT Process TimeoutExpired find_tool require_tool run spawn",
    "batch": "Job",
    "cli.parser": "Command",
    "cli.show": "lazy_progress progress_text",
    "config": "Config config_files load_config",
    "errors": (
        "AccessDenied CommandNotFound ConfigError CorruptImage HostileImage ImageAbsent ImageNotFound"
        " InvalidReference LaunchError MountError NotExecutable PolicyError RegistryError StoreError StoreFull"
        " ToolFailed ToolMissing UdiError UnsupportedImage UsageError"
    ),
    "host_calls": "HostCalls",
    "launch": "enter find",
    "image_config": "Platform",
    "mixed": "for_this_node pull_for_nodes",
    "mount": "MountedImage NodeMounts",
    "mpi": "is_rank",
    "node_kind": "ancestry check_kind choose_kind parse_kinds",
    "platforms": "host_platform parse_platform",
    "programs": "find_program",
    "progress": "Progress ProgressSink ignore",
    "pulling": "pull",
    "ranks": "calls_for_ranks entering serve_ranks",
    "reference": "ImageReference",
    "sandbox": "Host Launch LaunchSpec build execute",
    "sources": "open_source resolve",
    "standing": "stand",
    "store": "ImageStore PythonInfo StoredImage",
    "volumes": "Volume",
}
# Names that are too short to stand alone outside of their module.
_RENAMED = {
    "agent_command": ("agent.host", "command"),
    "agent_support": ("agent.host", "support"),
    "pack": ("agent.in_image", "dumps"),
    "unpack": ("agent.in_image", "loads"),
    "task_directory": ("task_files", "prepare"),
    "write_record": ("record", "write"),
}
_HOME = {name: (module, name) for module, names in _EXPORTS.items() for name in names.split()} | _RENAMED

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, original = _HOME[name]
    value = getattr(import_module(f"{__name__}.{module}"), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
