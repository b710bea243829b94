"""What a warm ``udi run`` imports: each of these would cost it five milliseconds or more."""

from __future__ import annotations

import os
import subprocess
import sys

import udi_core

SLOW = (
    "asyncio http logging pathlib requests rich shutil socket subprocess tempfile typing urllib urllib3 yaml zipfile"
    " udi_core._process udi_core.manifest udi_core.pull udi_core.registry"
)
_PROGRAM = """
import sys
sys.path[:0] = [{path!r}]
import udi_core.cli.parser, udi_core.cli.run
arguments = udi_core.cli.parser.COMMANDS["run"]
parser = udi_core.cli.parser._Parser(prog="udi run")
arguments.arguments(parser)
print([name for name in {slow!r}.split() if name in sys.modules])
"""


def test_a_warm_run_imports_nothing_slow() -> None:
    path = os.path.dirname(os.path.dirname(udi_core.__file__))
    # -I -S: what site and .pth files import is not ours.
    program = _PROGRAM.format(path=path, slow=SLOW)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
