"""Starting or joining Ray."""

import json
import os
import secrets
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workers
from cluster.own_ray import OwnRay
from workers.errors import Failed, Interrupted, WrongInput, in_one_line

__all__ = ["Session", "of_its_own", "open_session", "require_lasting", "stage_code", "wait"]

CONNECT_SECONDS = 10.0

_PACKAGES = ("cluster", "workers")
_HOUSE = {*_PACKAGES, "analysis", "jobs"}


@dataclass(frozen=True)
class Session:
    """A Ray that is running: where it is and what it has.

    Attributes:
        local: whether this process started it, for itself alone.
        cpus: logical processors of the whole cluster now.
        gpus: its GPUs.
        own: the Ray that this process started, None where it joined one.
    """

    local: bool
    cpus: float
    gpus: float
    own: OwnRay | None = None

    def require_alive(self) -> None:
        """Raises `Failed` when a part of its own Ray has died; of a cluster's death Ray itself tells."""
        if self.own:
            self.own.require_alive()

    def keep_logs(self) -> None:
        """Something failed: the logs of its own Ray stay."""
        if self.own:
            self.own.keep_logs()


def wait(references: Sequence[Any], count: int, seconds: float) -> tuple[list[Any], list[Any]]:
    """`ray.wait`: the references that are ready, and those that are not.

    What a signal's handler raises meanwhile Ray wraps into an error of Python's own machinery.

    Args:
        references: of calls.
        count: how many to wait for.
        seconds: how long at most.
    """
    import ray

    try:
        return ray.wait(references, num_returns=count, timeout=seconds)
    except SystemError as error:
        if isinstance(error.__cause__, KeyboardInterrupt | Failed):
            raise error.__cause__ from None
        raise


def of_its_own(address: str | None) -> Session | None:
    """What a Ray that `open_session` would start has; None where it would join one instead."""
    if (address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        return None
    _set_environment()
    import joblib  # counts the processors that a container or an affinity mask leaves
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    visible = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    return Session(True, joblib.cpu_count(), gpus if visible is None else min(gpus, len(visible)))


@contextmanager
def open_session(address: str | None = None, say: Callable[[str], None] = lambda line: None) -> Iterator[Session]:
    """Joins the cluster at an address, else at ``RAY_ADDRESS``, else starts a Ray of this process's own.

    A Ray of its own ends with the context, and only this process's token opens it; so a laptop never joins a
    stranger's cluster, nor a stranger the laptop's. A cluster is joined with the token that ``RAY_AUTH_TOKEN`` or
    ``RAY_AUTH_TOKEN_PATH`` names, and is sent the code that actors run, unless a submitted job has brought it.

    Args:
        address: ``HOST:PORT`` of a head, ``auto`` for the one on this machine, or ``local``.
        say: called with a line about what the user should mend, and before the seconds that a Ray takes to start.

    Raises:
        Failed: when Ray has died, in whatever the context was doing.
        WrongInput: when no cluster answers at the address, or it refuses this process: another token, another
            version of Ray or Python, no node on this machine.
    """
    _set_environment()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own_token = _name_token(address, say)
    import joblib  # counts the processors that a container or an affinity mask leaves
    import ray

    ray._raylet.Config.initialize("")  # who imported Ray earlier has made it read the environment as it was then
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()

    # Ray takes SIGTERM for itself and exits with 15; the command line's own handler ends it like Ctrl-C.
    handler = signal.getsignal(signal.SIGTERM)
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        say("starting Ray")
        # Ray's processes inherit it: a terminal that is closed tells all of them, and they are ended from here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            ray.init(address="local", num_cpus=joblib.cpu_count(), include_dashboard=False, **quiet)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        _join(address, quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    own = OwnRay() if address == "local" else None
    try:
        with own.watched() if own else nullcontext():
            resources = ray.cluster_resources()
            yield Session(address == "local", resources.get("CPU", 0), resources.get("GPU", 0), own)
    except (WrongInput, Interrupted):
        raise
    except ray.exceptions.RayError as error:
        if own:
            own.require_alive()
            own.keep_logs()
        raise Failed(f"Ray failed: {in_one_line(error)[:300]}: run the same command again to go on") from error
    except Exception:
        if own:
            own.keep_logs()
        raise
    finally:
        if own:
            own.end(ray.shutdown)
        else:
            ray.shutdown()
        if own_token:  # nobody else's
            del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]


def _set_environment() -> None:
    """Sets what Ray is to find in its environment, before it is imported."""
    # Read by Ray when it is imported: no usage report, and a GPU stays hidden from actors that asked for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    # Ray prints paragraphs on standard output for every worker that dies; the queue says it in a line.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # … and a traceback for every call that nobody waits for any more, as of a worker that comes back at the end.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")


def _name_token(address: str, say: Callable[[str], None]) -> bool:
    """Sets what makes Ray use a token, and returns whether that is one of this session's own.

    Ray sends a token only with ``RAY_AUTH_MODE=token``, and for a Ray of its own writes one into a file that
    everybody on the machine can read: that one is given in memory instead.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in os.environ and (path or os.environ.get("RAY_AUTH_TOKEN")):
        os.environ["RAY_AUTH_MODE"] = "token"
    elif "RAY_AUTH_MODE" not in os.environ and address == "local":
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
        return True
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return False
    file = Path(path) if path else Path.home() / ".ray" / "auth_token"
    if file.is_file() and (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
        say(f"warning: the token in {file} can be read by others (mode {mode:03o}): chmod 600 {file}")
    return False


def _join(address: str, options: dict[str, object]) -> None:
    """Joins a cluster; Ray itself would try for minutes before it gave up, so its head is asked first."""
    import ray
    from ray._private import services

    def refuse(reason: object) -> WrongInput:
        return WrongInput(f"--address {address}: {in_one_line(reason)[:300]}")

    if address.startswith("ray://"):
        raise refuse(
            "Ray Client (ray://) is not supported: submit the command with ray job submit, or run it on a node "
            "and give HOST:PORT of the head"
        )
    head = address
    try:
        if address == "auto" and (head := services.canonicalize_bootstrap_address("auto")) is None:
            raise refuse("no Ray runs on this machine")
        _require_head(head)
        if not services.find_node_ids():
            raise refuse(
                f"this machine is not a node of the cluster: use ray job submit, or ray start --address={address} first"
            )
        with tempfile.TemporaryDirectory() as folder:
            if not _brought_by_job():
                options = options | {"runtime_env": {"working_dir": str(stage_code(Path(folder)))}}
            ray.init(address=head, **options)
    except WrongInput:
        raise
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        error = error.__cause__ or error
        raise refuse(getattr(error, "message", error)) from None


def _require_head(address: str) -> None:
    """Asks a Ray head whether it lives and takes this process's token.

    Raises:
        ValueError: when it is not a head of this Ray version that does.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ValueError("expected HOST:PORT of a Ray head, auto or local")
    import grpc
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    channel = init_grpc_channel(address)
    try:
        service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        version = service.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=CONNECT_SECONDS).ray_version
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            how = "another token than the one given" if is_token_auth_enabled() else "a token"
            raise ValueError(
                f"the cluster wants {how}: set RAY_AUTH_TOKEN_PATH to the file that holds its token"
            ) from None
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise ValueError(
                "what answers is no Ray head; its port is 6379 unless ray start was told another"
            ) from None
        raise ValueError(f"no Ray cluster answers: {error.details()}") from None
    finally:
        channel.close()
    if version != ray.__version__:
        raise ValueError(f"the cluster runs Ray {version}, this command Ray {ray.__version__}: install the same")


def _brought_by_job() -> bool:
    """Whether this process is a submitted job whose working directory Ray has on every node already."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return "working_dir" in (config.get("runtime_env") or {})


def require_lasting(out: Path) -> None:
    """Refuses a results folder in the working directory of a submitted job, a copy that Ray removes in time.

    Raises:
        WrongInput: when it lies there.
    """
    if _brought_by_job() and out.resolve().is_relative_to(Path.cwd().resolve()):
        raise WrongInput(
            f"--out {out}: lies in the job's own copy of the working directory; give a path all nodes share"
        )


def stage_code(folder: Path) -> Path:
    """Copies into a folder what actors elsewhere need: brittle's own code and what can be imported from here.

    Of the working directory these are the Python files in folders whose names can be imported, less what its
    ``.rayignore`` and ``.gitignore`` name, which Ray itself reads. Nothing else of it travels: it may be large.

    Returns:
        The folder.
    """
    root, here = Path(workers.__file__).parent.parent, Path.cwd()
    for package in _PACKAGES:
        _copy_python(root / package, folder / package)
    _copy_python(here, folder, without=_HOUSE)
    for name in (".gitignore", ".rayignore"):
        if (here / name).is_file():
            shutil.copyfile(here / name, folder / name)
    return folder


def _copy_python(source: Path, target: Path, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    for path, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name.isidentifier() and name != "__pycache__"]
        if Path(path) == source:
            folders[:] = [name for name in folders if name not in without]
        wanted = [name for name in files if name.endswith(".py") and name.removesuffix(".py") not in without]
        if wanted:
            to = target / Path(path).relative_to(source)
            to.mkdir(parents=True, exist_ok=True)
            for name in wanted:
                shutil.copyfile(Path(path, name), to / name)
