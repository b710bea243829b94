"""An image that a kernel is about to start in: mounted, with its Python known, and able to run programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from udi_core import (
    Config,
    Host,
    HostCalls,
    ImageStore,
    Launch,
    LaunchSpec,
    MountedImage,
    NodeMounts,
    ProgressSink,
    StoredImage,
    UnsupportedImage,
    Volume,
    build,
    find,
    load_config,
    run,
)
from udi_jupyter.kernelspec import KernelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A mounted image, seen with a kernel's settings.

    Attributes:
        python: path of the image's Python, or a name along its PATH.
        environ: the environment of whoever starts the kernel.
        cwd: the kernel's working directory.
    """

    settings: KernelSettings
    python: str
    mounted: MountedImage
    config: Config
    environ: Mapping[str, str]
    cwd: str

    def launch(
        self,
        *command: str,
        support: tuple[Volume, ...] = (),
        calls: HostCalls | None = None,
    ) -> Launch:
        """The command line that runs a program as the kernel would be run: it dies with the process that starts it.

        ``calls`` lets it call programs of the node.
        """
        spec = LaunchSpec(
            command=command,
            volumes=tuple(map(Volume.parse, self.settings.volumes)),
            support=support,
            env=self.settings.env,
            by="jupyter",
            environ=self.environ,
            cwd=self.cwd,
            die_with_parent=True,
        )
        make = build if calls is None else calls.build
        return make(spec, self.mounted, self.config, Host.observe(self.mounted, environ=self.environ, cwd=self.cwd))

    def host_calls(self) -> contextlib.AbstractContextManager[HostCalls | None]:
        """What lets the kernel call programs of the node, if its settings ask for that."""
        if not self.settings.bridge:
            return contextlib.nullcontext()
        return HostCalls(self.config, environ=self.environ, cwd=self.cwd)

    def run_python(self, *arguments: str, support: tuple[Volume, ...] = ()) -> tuple[int, str, str]:
        """Run the image's Python to its end: exit status, standard output, standard error."""
        launch = self.launch(self.python, *arguments, support=support)
        done = run(launch.argv, env=launch.env, pass_fds=launch.pass_fds, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")


@contextlib.contextmanager
def inside(
    settings: KernelSettings,
    *,
    progress: ProgressSink,
    environ: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Iterator[Inside]:
    """Pull the image if it is missing and mount it; it stays mounted at least until the block ends.

    Raises:
        UnsupportedImage: it has no Python 3.
    """
    environ = dict(os.environ if environ is None else environ)
    config = load_config(environ)
    image = find(settings.image, config, progress=progress)
    python = settings.python or _python(image)
    with NodeMounts(config, ImageStore(config.store)).mount(image, progress) as mounted:
        yield Inside(
            settings=settings,
            python=python,
            mounted=mounted,
            config=config,
            environ=environ,
            cwd=os.fspath(cwd or os.getcwd()),
        )


def _python(image: StoredImage) -> str:
    if image.python is None:
        raise UnsupportedImage(
            f"{image.reference} has no Python 3",
            "None was found along the image's PATH.",
            "Name it: udi kernel install --python PATH; or use another image.",
        )
    return image.python.path
