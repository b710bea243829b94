"""Jupyter kernels inside images, and magics that run cells in images: ``%load_ext udi_jupyter``."""

from __future__ import annotations

from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """Add ``%udi`` and ``%%udi`` to IPython, and let futures show themselves; may be called twice."""
    from udi_jupyter import futures, magics  # neither a provisioner nor a kernel's start needs them

    shell.register_magics(magics.UdiMagics)
    futures.show_themselves(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Give nodes back that ``%udi nodes`` or ``%%udi --nodes`` took."""
    magics = shell.magics_manager.registry.get("UdiMagics")
    if magics is not None:
        magics.close()
