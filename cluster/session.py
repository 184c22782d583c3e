"""Starting or joining Ray."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from workers.errors import WrongInput

__all__ = ["Session", "open_session"]

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Session:
    """A Ray that is running: where it is and what it has.

    Attributes:
        local: whether this process started it, for itself alone.
        cpus: logical processors of the whole cluster now.
        gpus: its GPUs.
    """

    local: bool
    cpus: float
    gpus: float


@contextmanager
def open_session(address: str | None = None) -> Iterator[Session]:
    """Joins the cluster at an address, else at ``RAY_ADDRESS``, else starts a Ray of this process's own.

    A Ray of its own ends with the context; so a laptop never joins a stranger's cluster.

    Raises:
        WrongInput: when no cluster answers at the address.
    """
    # Read by Ray when it is imported: no usage report, and a GPU stays hidden from actors that asked for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    # Ray prints paragraphs on standard output for every worker that dies; the queue says it in a line.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import joblib  # counts the processors that a container or an affinity mask leaves
    import ray

    # Ray takes SIGTERM for itself and exits with 15; the command line's own handler ends it like Ctrl-C.
    handler = signal.getsignal(signal.SIGTERM)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _require_listener(address)
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address == "local":
            ray.init(address="local", num_cpus=joblib.cpu_count(), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise WrongInput(f"--address {address}: no Ray cluster answers: {first}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    try:
        resources = ray.cluster_resources()
        yield Session(address == "local", resources.get("CPU", 0), resources.get("GPU", 0))
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Asks a ``host:port`` for a connection first: Ray itself would try for minutes before it gives up."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # "local" and "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise WrongInput(f"--address {address}: no Ray cluster answers: {error}") from None
