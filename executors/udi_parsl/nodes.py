"""Images before tasks: pulled ahead on the submit side, mounted once on each node before its workers start."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping

from udi_core import Config, ImageReference, ImageStore, ProgressSink, StoredImage, ignore, load_config


def prefetch(
    *references: str | Mapping[str, str], config: Config | None = None, progress: ProgressSink = ignore
) -> list[StoredImage]:
    """Pull images now, so that the first tasks need not wait; idempotent.

    Raises:
        UdiError: the first image that cannot be pulled.
    """
    from udi_core import pull  # the HTTP client, which workers must not load

    config = config or load_config()
    store = ImageStore(config.store)
    texts = [text for each in references for text in ([each] if isinstance(each, str) else each.values())]
    return [pull(ImageReference.parse(text), store, config, progress=progress) for text in dict.fromkeys(texts)]


def worker_init(*references: str, before: str = "") -> str:
    """Shell lines for a provider's ``worker_init``: mount images on the node before its workers start.

    ``before`` are lines to run first (``module load …``).  A node that cannot mount goes on: its tasks will say why.
    """
    images = " ".join(shlex.quote(str(ImageReference.parse(each))) for each in references)
    python = shlex.quote(sys.executable)
    return f"{before}\n{python} -m udi_core node warm --no-pull {images} || true\n".lstrip("\n")
