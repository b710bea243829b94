"""JupyterLab in a real browser: the server, and headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service

from tests.support.kernels import PATIENCE
from udi_core import _process

Result = TypeVar("Result")
_SERVER = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port=0",
    "--ServerApp.port_retries=0",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)
_BROWSER = (
    "--headless=new",
    "--no-sandbox",  # root's Chromium has none, and an ordinary user's may lack the namespaces for it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--window-size=1200,760",
)


@contextlib.contextmanager
def server(directory: Path, runtime: Path, log: Path) -> Iterator[str]:
    """JupyterLab on the files of a directory; gives its address, token included.

    It asks nobody outside for news or newer extensions.  ``runtime`` is Jupyter's runtime directory.
    """
    token = secrets.token_hex(16)
    settings = runtime / "settings"
    news = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True, exist_ok=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    options = [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={directory}"]
    options += [f"--LabApp.user_settings_dir={settings}"]
    with log.open("wb") as output:
        argv = [sys.executable, "-m", "jupyterlab", *_SERVER, *options]
        running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:

        def address() -> str | None:
            assert running.poll() is None, log.read_text()
            file = runtime / f"jpserver-{running.pid}.json"
            if not file.exists():
                return None
            root = f"http://127.0.0.1:{json.loads(file.read_text())['port']}/"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{root}api?token={token}", timeout=30):
                return f"{root}lab?token={token}"
            return None

        yield wait_for(address, "JupyterLab answers")
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a profile of its own below a directory."""
    options = webdriver.ChromeOptions()
    options.binary_location = _process.require_tool("chromium", reason="show JupyterLab")
    for each in (*_BROWSER, f"--user-data-dir={directory / 'profile'}"):
        options.add_argument(each)
    driver = _process.require_tool("chromedriver", reason="use Chromium")
    # Proxies are for the world outside; chromedriver and JupyterLab are on this machine.
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    page = webdriver.Chrome(options=options, service=Service(driver, env=env))
    page.set_page_load_timeout(PATIENCE)
    try:
        yield page
    finally:
        page.quit()


def wait_for(find: Callable[[], Result | None], what: str, patience: float = PATIENCE) -> Result:
    """The first result that is true; a page that is being redrawn is asked again.

    Raises:
        TimeoutError: there was none within ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(WebDriverException, TimeoutError):
            found = find()
            if found:
                return found
        time.sleep(0.1)
    raise TimeoutError(f"waited {patience} s in vain: {what}")


def element(page: webdriver.Chrome, selector: str, patience: float = PATIENCE) -> Any:
    """The first visible element that a CSS selector finds, once there is one."""

    def visible() -> Any:
        return next((each for each in page.find_elements("css selector", selector) if each.is_displayed()), None)

    return wait_for(visible, selector, patience)
