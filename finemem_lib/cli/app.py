"""`finemem app`: the credit laboratory in a browser, without code.

Voila executes `laboratory/laboratory.ipynb` and shows what it displays. It listens on loopback
only and asks for the token of the printed address; a URL chooses neither template nor theme.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from finemem_lib.cli.rescore import existing_run
from finemem_lib.runs.run import runs_folder
from finemem_lib.util.console import EXIT_CODES, UsageError, interruptible

HOST, PORT = "127.0.0.1", 8866

EXTENSIONS = (
    "@jupyter-widgets/jupyterlab-manager",
    "@voila-dashboards/widgets-manager8",
    "anywidget",
)
"""JupyterLab extensions of the page; they draw widgets. No other extension is loaded."""

START_SECONDS, STOP_SECONDS = 120.0, 15.0
"""Maximum seconds until the server answers, and until it ends."""

WORKING_FOLDER = "FINEMEM_WORKING_FOLDER"
"""Environment variable with the working folder of `finemem app`, because Voila changes it."""


def add_command(commands: Any) -> None:
    """Add `finemem app` to the command line."""
    command = commands.add_parser(
        "app",
        help="open the credit laboratory in a browser, without code",
        description="Shows the evidence, the credit, the rollouts, the memory, the completions and "
        "the training of a run or of built-in examples. The address in the browser names what is "
        "shown, so it can be linked to. Only this machine can open it. Ctrl-C ends it.",
    )
    command.set_defaults(command=_app_command, last_line=True)
    command.add_argument(
        "run", metavar="RUN", nargs="?", help="open this run (default: an example)"
    )
    command.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help=f"port of the server (default: {PORT}, or a free port if that is taken)",
    )
    command.add_argument("--projector", action="store_true", help="start with large type")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.add_argument(
        "--verbose", action="store_true", help="show what the server and its kernels report"
    )


def _port(text: str) -> int:
    if text.isdecimal() and 1024 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r:.40}, expected a port from 1024 to 65535")


def _app_command(options: argparse.Namespace) -> int:
    """Serve the laboratory until it is interrupted."""
    if importlib.util.find_spec("voila") is None:
        raise UsageError(
            "the laboratory needs Voila, which is not installed; run `make app`, or pip install "
            "'fine-mem[app]'"
        )
    # A kernel runs what it is sent, and another account of this machine could reach the port.
    token = secrets.token_urlsafe()
    asked = {"token": token}
    asked |= {"source": existing_run(options.run).name} if options.run else {}
    asked |= {"projector": "1"} if options.projector else {}
    port = _free_port(options.port)
    url = f"http://{HOST}:{port}/?{urlencode(asked)}"
    options.result = {"url": url}
    try:
        with interruptible(once=False), _serving(port, token, options.verbose) as server:
            if not _wait_for_server(port, server):
                print(
                    "the server of the laboratory does not answer; --verbose shows what it reports",
                    file=sys.stderr,
                )
                return EXIT_CODES["failed"]
            print(f"the laboratory is at {url}\nCtrl-C ends it", flush=True)
            if not options.no_browser:
                webbrowser.open(url)
            return EXIT_CODES["failed" if server.wait() else "ok"]
    except KeyboardInterrupt:  # how it is meant to end
        return EXIT_CODES["ok"]


def _free_port(wanted: int | None) -> int:
    """Return the port that was asked for, else the usual one, else a free one.

    Raises:
        UsageError: the port that was asked for is taken.
    """
    for port in (wanted,) if wanted else (PORT, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise UsageError(f"--port: {wanted} is taken; choose another one, or leave the option out")


@contextlib.contextmanager
def _serving(port: int, token: str, verbose: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Run Voila on the notebook of the laboratory; at the end, stop it with its kernels."""
    folder = resources.files(__package__) / "laboratory"
    templates = [str(folder), *filter(None, [os.environ.get("JUPYTER_PATH")])]
    environment = os.environ | {
        "JUPYTER_PATH": os.pathsep.join(templates),
        "FINEMEM_EXPLORERS": "live",
        WORKING_FOLDER: os.getcwd(),
        "JUPYTER_TOKEN": token,  # not an option, which any account could read
        "FINEMEM_RUNS_DIR": str(runs_folder()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "voila", str(folder / "laboratory.ipynb"), *_options(port)],
        env=environment,
        stdout=None if verbose else subprocess.DEVNULL,
        stderr=None if verbose else subprocess.DEVNULL,
        start_new_session=True,  # an interrupt of the terminal reaches this process only
    )
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _options(port: int) -> list[str]:
    """Return the options of Voila."""
    return [
        "--no-browser",
        f"--port={port}",
        "--Voila.port_retries=0",
        "--Voila.auto_token=True",  # takes JUPYTER_TOKEN
        f"--Voila.ip={HOST}",
        "--Voila.tornado_settings=allow_remote_access=",  # empty: only under a name of loopback
        "--Voila.tornado_settings=disable_check_xsrf=1",  # its page ends its kernel without a token
        "--MappingKernelManager.cull_idle_timeout=900",  # of pages that are gone without a word
        *(f"--VoilaConfiguration.extension_allowlist={name}" for name in EXTENSIONS),
        "--VoilaConfiguration.template=finemem",
        "--VoilaConfiguration.allow_template_override=NO",
        "--VoilaConfiguration.allow_theme_override=NO",
        "--VoilaConfiguration.show_tracebacks=False",
    ]


def _wait_for_server(port: int, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers, and return whether it does."""
    ends = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < ends:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return True
        time.sleep(0.1)
    return False
