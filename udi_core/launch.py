"""One call from a reference to a command line: look up or pull, mount, build."""

from __future__ import annotations

from udi_core.config import Config, load_config
from udi_core.contexts import contextmanager
from udi_core.errors import ImageAbsent
from udi_core.image_config import Platform
from udi_core.mount import NodeMounts
from udi_core.platforms import parse_platform
from udi_core.policy import check_reference
from udi_core.progress import ProgressSink, ignore
from udi_core.reference import ImageReference
from udi_core.sandbox import Host, Launch, LaunchSpec, build
from udi_core.store import ImageStore, StoredImage

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator


def find(
    reference: ImageReference | str,
    config: Config,
    *,
    platform: Platform | None = None,
    pull_missing: bool = True,
    progress: ProgressSink = ignore,
) -> StoredImage:
    """The image of a reference: from the store if it is there, else pulled.

    Raises:
        ImageAbsent: it is not there, and ``pull_missing`` is false.
        PolicyError: the site does not allow it, whether it is there or not.
    """
    if isinstance(reference, str):
        reference = ImageReference.parse(reference)
    check_reference(config.policy, reference)
    store = ImageStore(config.store, config.node_dir)
    if platform is None and config.platform:
        platform = parse_platform(config.platform)
    try:
        return store.lookup(reference, platform)
    except ImageAbsent:
        if not pull_missing:
            raise
    from udi_core.pulling import pull  # the HTTP client, which a warm start must not load

    return pull(reference, store, config, platform=platform, progress=progress)


@contextmanager
def enter(
    reference: ImageReference | str,
    spec: LaunchSpec,
    *,
    config: Config | None = None,
    pull_missing: bool = True,
    progress: ProgressSink = ignore,
) -> Iterator[Launch]:
    """The command line that runs ``spec`` in an image; the image stays mounted at least until the block ends.

    A process that is started with the launch's ``pass_fds`` keeps the mount for as long as it lives.
    """
    config = config or load_config()
    image = find(reference, config, pull_missing=pull_missing, progress=progress)
    with NodeMounts(config, ImageStore(config.store)).mount(image, progress) as mounted:
        yield build(spec, mounted, config, Host.observe(mounted, environ=spec.environ, cwd=spec.cwd))
