"""Places on a disk, on S3, and where nothing can be written."""

import os
import pickle
import resource
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from workers.errors import StorageError, WrongInput
from workers.parquet import read_footer, read_table
from workers.places import Place
from workers.results import write_part


def test_a_place_is_read_as_it_was_written(free_place: Place) -> None:
    place = pickle.loads(pickle.dumps(free_place))
    assert not place.exists()
    assert place.names() == []
    if place.local:
        place.path.mkdir()
    file = place / "file"
    with pytest.raises(FileNotFoundError):
        file.read()
    assert file.create(b"one")
    assert not file.create(b"two")
    assert file.read() == b"one"
    file.write(b"three")
    (place / "folder" / ".hidden").write(b"")
    assert (file.read(), place.names(), (place / "folder").names()) == (b"three", ["file", "folder"], [".hidden"])
    assert (file.is_file(), place.is_file(), place.exists(), file.parent, file.name) == (
        True,
        False,
        True,
        place,
        "file",
    )
    file.remove()
    file.remove()
    assert not file.exists()


def test_pyarrow_reads_columns_of_a_place(free_place: Place) -> None:
    table = pa.table({"a": range(1000), "b": ["x"] * 1000})
    if free_place.local:
        free_place.path.mkdir()
    write_part(table, free_place / "parts")
    assert read_table(free_place / "parts", ["a", "absent"]) == table.select(["a"])
    assert read_footer(free_place / "parts").num_rows == 1000
    for broken in (b"", b"no", (free_place / "parts").read()[:-9]):
        (free_place / "parts").write(broken)
        for read in (read_table, read_footer):
            with pytest.raises((OSError, pa.ArrowException)) as raised:
                read(free_place / "parts")
            assert not isinstance(raised.value, StorageError)  # it is there, and broken
    with pytest.raises(FileNotFoundError):
        read_table(free_place / "absent")


def test_a_thread_of_arrows_never_holds_what_python_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a thread aborts the process when it lets go while the interpreter ends."""
    import fsspec.implementations.memory as memory

    table = pa.table({"a": range(1000), "b": ["x"] * 1000})
    strange = tmp_path / os.fsdecode(b"\xff \n%20.parquet")  # a path that is no text
    write_part(table, Place.of(strange))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", None)
        assert read_table(strange) == table  # by Arrow's own file
    readers = []

    class Watched(memory.MemoryFile):
        def read(self, size: int = -1) -> bytes:
            readers.append(threading.get_ident())
            return super().read(size)

    write_part(table, Place.of("memory://shelf/part.parquet"))
    held = memory.MemoryFileSystem.store["/shelf/part.parquet"]
    monkeypatch.setattr(memory.MemoryFileSystem, "_open", lambda *_, **__: Watched(None, None, held.getvalue()))
    assert read_table(Place.of("memory://shelf/part.parquet")) == table
    assert read_footer(Place.of("memory://shelf/part.parquet")).num_rows == 1000
    assert set(readers) == {threading.get_ident()}


def test_a_file_that_cannot_be_read_says_why_as_python_would(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(StorageError, match=r"loop: Too many levels of symbolic links$"):
        read_table(loop)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nowhere://a/b", "cannot be reached"),
        ("a://b", "cannot be reached"),
        ("s3://", "expected a folder"),
        ("s3:///", "expected a folder"),
    ],
)
def test_uris_that_lead_nowhere(uri: str, said: str) -> None:
    with pytest.raises(WrongInput, match=said):
        Place.of(uri)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core  # noqa: F401

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(WrongInput, match=r"not installed: pip install 'brittle\[s3\]'"):
        Place.of("s3://bucket/run")


def test_what_s3_refuses_is_said_in_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/run/a: The specified bucket does not exist"):
        (Place.of("s3://no-such-bucket/run") / "a").write(b"")
    assert (Place.of("s3://no-such-bucket/run") / "a").exists() is False


def test_a_full_disk_says_so_and_keeps_nothing_half(small_disk: Path) -> None:
    place = Place.of(small_disk) / "parts" / "part-000000.parquet"
    place.write(b"old")
    with pytest.raises(StorageError, match=r"part-000000.parquet: No space left on device"):
        place.write(bytes(200_000))
    assert place.read() == b"old"
    assert place.parent.names() == ["part-000000.parquet"]


def test_a_file_that_is_too_large_for_its_filesystem(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="file: File too large"):
            (Place.of(tmp_path) / "file").write(bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_taken_away(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone/part: No such file or directory"):
        (Place.of(tmp_path) / "run" / "gone" / "part").write(b"")
    assert list(tmp_path.iterdir()) == []
