"""What a warm ``udi run`` imports: each of these would cost it between one and sixty milliseconds."""

from __future__ import annotations

import os
import subprocess
import sys

import udi_core

SLOW = (
    "argparse asyncio ast contextlib copy ctypes dataclasses enum functools hashlib http inspect json logging pathlib"
    " re requests rich shutil signal socket subprocess tempfile typing urllib urllib3 warnings yaml zipfile"
    " udi_core._process udi_core.cli.parser udi_core.cli.show udi_core.manifest udi_core.pulling udi_core.registry"
)
_PROGRAM = """
import sys
sys.path[:0] = [{path!r}]
import udi_core.__main__, udi_core.cli, udi_core.cli.arguments, udi_core.cli.run, udi_core.become
from udi_core.config import load_config
from udi_core.reference import ImageReference
from udi_core.volumes import Volume
udi_core.cli.arguments.read("run", ["-V", "/a:/b", "-e", "K=V", "--entrypoint", "x", "true"])
load_config({{"HOME": "/nonexistent"}}), ImageReference.parse("ghcr.io/lab/x:1"), Volume.parse("/a:/b:ro")
print([name for name in {slow!r}.split() if name in sys.modules])
"""


def test_a_warm_run_imports_nothing_slow() -> None:
    path = os.path.dirname(os.path.dirname(udi_core.__file__))
    # -I -S: what site and .pth files import is not ours.
    program = _PROGRAM.format(path=path, slow=SLOW)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
