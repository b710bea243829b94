"""``python -m tests.support``: makes the images of the tests that are not there yet, a line each."""

from __future__ import annotations

from tests.support import images

for name in images.RECIPES:
    print(f"{name}: {images.image(name).path}", flush=True)
