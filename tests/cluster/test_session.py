"""Joining a cluster, or being refused by it in one line; and a Ray of one's own."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cluster.session import open_session
from tests.cluster.conftest import ROOT
from workers.errors import WrongInput


class OldHead(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    def CheckAlive(self, request: object, context: object) -> object:
        return gcs_service_pb2.CheckAliveReply(ray_version="1.13.0")


def test_a_head_of_another_ray_is_refused() -> None:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(OldHead(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with pytest.raises(WrongInput, match=r"the cluster runs Ray 1\.13\.0"), open_session(f"127.0.0.1:{port}"):
                pass
        finally:
            server.stop(None).wait()


@pytest.fixture
def no_ray() -> Iterator[str]:
    """Something that answers in plain HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_that_is_no_head_is_refused(no_ray: str) -> None:
    with pytest.raises(WrongInput, match=f"--address {no_ray}: no Ray cluster answers"), open_session(no_ray):
        pass


def test_ray_client_is_refused() -> None:
    with pytest.raises(WrongInput, match="Ray Client"), open_session("ray://127.0.0.1:10001"):
        pass


LOCAL = """
import os
import ray  # before brittle has said anything of tokens
from cluster.session import open_session
with open_session() as session:

    @ray.remote
    def token():
        return os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])

    print(session.local, *ray.get(token.remote()))
"""


def test_a_local_ray_has_a_token_that_no_file_holds(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    environment = clean_environment | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", "token", "64"], done.stderr
    assert not [path for path in tmp_path.rglob("*") if "token" in path.name]
