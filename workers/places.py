"""Where results lie: a folder or file on a disk, or below a URI of any fsspec filesystem (``s3://bucket/run``)."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.errors import StorageError, WrongInput, in_one_line
from workers.files import write_whole

__all__ = ["Place"]

READ_AHEAD_BYTES = 2**20
"""Fetched beyond what is asked for of a file that is not on a disk."""

_EXTRAS = {"s3": "pip install 'brittle[s3]'"}


@dataclass(frozen=True)
class Place:
    """A file or folder, by its local path or its URI; it travels to actors, and each reaches it by itself.

    Credentials and endpoints of a remote filesystem come from the environment that its library reads
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, …), in the driver and in each actor.

    A file is whole or absent. On a disk it is written under a hidden temporary name, synced and renamed. On a
    remote filesystem it is one put of bytes that are complete: an object that is streamed would appear when its
    stream closes, even after an error.

    Attributes:
        uri: the path or URI, without a slash at its end.
    """

    uri: str

    @classmethod
    def of(cls, where: "str | Path | Place") -> "Place":
        """The place that a user named.

        Raises:
            WrongInput: for a URI that no installed library can reach.
        """
        if isinstance(where, Place):
            return where
        text = str(where)
        if not isinstance(where, str) or "://" not in text:
            return cls(str(Path(text)))
        protocol, _, rest = text.partition("://")
        if protocol in ("file", "local"):
            return cls(str(Path(rest)))
        if len(protocol) == 1:  # fsspec takes it for a disk of Windows
            raise WrongInput(f"{text}: cannot be reached: no filesystem is called {protocol}://")
        place = cls(text.rstrip("/"))
        if not rest.strip("/"):
            raise WrongInput(f"{text}: expected a folder, as {protocol}://bucket/folder")
        try:
            _ = place._filesystem
        except ImportError as error:
            how = _EXTRAS.get(protocol, in_one_line(error))
            raise WrongInput(f"{text}: the library that reaches {protocol}:// is not installed: {how}") from None
        except Exception as error:  # each filesystem refuses in its own way
            raise WrongInput(f"{text}: cannot be reached: {_reason(error)}") from None
        return place

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "Place":
        return Place(str(self.path / name) if self.local else f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> "Place":
        """The folder that it lies in."""
        return Place(str(self.path.parent)) if self.local else Place(self.uri.rpartition("/")[0])

    @property
    def local(self) -> bool:
        """Whether it is a path of this machine, a shared file system's included."""
        return "://" not in self.uri

    @property
    def path(self) -> Path:
        """The path of a local place."""
        assert self.local
        return Path(self.uri)

    def resolve(self) -> "Place":
        """The place by its absolute path: actors have another working directory."""
        return Place(str(self.path.resolve())) if self.local else self

    def exists(self) -> bool:
        """Whether a file or folder is there; a remote folder is where a file below it is."""
        return self.path.exists() if self.local else bool(self._kind())

    def is_file(self) -> bool:
        """Whether a file is there."""
        return self.path.is_file() if self.local else self._kind() == "file"

    def names(self) -> list[str]:
        """The names of what is in the folder, hidden ones included, sorted; none when it is absent."""
        try:
            if self.local:
                return sorted(os.listdir(self.path))  # noqa: PTH208  (names are wanted, 10⁵ paths are slow to make)
            with self._reaching():
                found = self._filesystem.ls(self._key, detail=False)
        except FileNotFoundError:
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found} - {""})

    def read(self) -> bytes:
        """The file's content.

        Raises:
            FileNotFoundError: when it is absent.
            StorageError: when it cannot be reached.
        """
        with self._reaching():
            return self.path.read_bytes() if self.local else bytes(self._filesystem.cat_file(self._key))

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The file for `workers.parquet`, which reads what it needs of it: a footer, some columns.

        Of a disk it is Arrow's own; else it is Python's, and no thread of Arrow's may be given it.

        Raises:
            FileNotFoundError: when it is absent.
            StorageError: when it cannot be reached; what pyarrow raises for a broken file is left as it is.
        """
        import pyarrow as pa

        with self._reaching():
            if self.local:
                file: Any = _native_file(self.path)
            else:  # columns that follow each other come in one request
                file = self._filesystem.open(self._key, "rb", cache_type="readahead", block_size=READ_AHEAD_BYTES)
        broken: Exception | None = None
        with file, self._reaching():
            try:
                yield file
            except (OSError, ValueError, pa.ArrowException) as error:
                # A plain OSError without a number is pyarrow's word for a broken file: not one out of reach.
                if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                    raise
                broken = error
        if broken is not None:
            raise broken

    def write(self, content: bytes) -> None:
        """Writes the file whole, in place of what was there; the folder that it lies in comes to be.

        Raises:
            StorageError: naming the place and the reason (no space left, access denied); nothing is left then.
        """
        with self._reaching(writing=True):
            if self.local:
                self.path.parent.mkdir(exist_ok=True)
                write_whole(self.path, content)
            else:
                self._filesystem.pipe_file(self._key, content)

    def create(self, content: bytes) -> bool:
        """Writes the file whole if there is none: of several who try at once, one succeeds.

        On a remote filesystem without a conditional write (S3, GCS and Azure have it) it is looked for first,
        and written then.

        Returns:
            Whether this call created it.

        Raises:
            StorageError: when it cannot be written.
        """
        try:
            with self._reaching(writing=True):
                if self.local:
                    with self.path.open("xb") as file:
                        file.write(content)
                else:
                    self._filesystem.pipe_file(self._key, content, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self) -> None:
        """Removes the file, if it is there.

        Raises:
            StorageError: when it cannot be removed.
        """
        with self._reaching(writing=True), contextlib.suppress(FileNotFoundError):
            if self.local:
                self.path.unlink()
            else:
                self._filesystem.rm_file(self._key)

    def _kind(self) -> str:
        """What is there, empty when nothing is; fsspec's own question takes a network that is down for an absence."""
        try:
            with self._reaching():
                return str(self._filesystem.info(self._key)["type"])
        except FileNotFoundError:
            return ""

    @property
    def _filesystem(self) -> Any:
        return self._reach()[0]

    @property
    def _key(self) -> str:
        return str(self._reach()[1])

    def _reach(self) -> tuple[Any, str]:
        """The filesystem, which fsspec makes once a process, and the path in it."""
        import fsspec.core

        # What other processes write must be seen, so listings are not kept.
        return fsspec.core.url_to_fs(self.uri, use_listings_cache=False)

    @contextmanager
    def _reaching(self, *, writing: bool = False) -> Iterator[None]:
        """Turns what a filesystem raises into one kind of error that names the place and the reason."""
        try:
            yield
        except StorageError:
            raise
        except (FileNotFoundError, FileExistsError) as error:
            if writing and isinstance(error, FileNotFoundError):  # no bucket, no folder
                raise StorageError(f"{self}: {_reason(error)}") from error
            raise
        except OSError as error:
            raise StorageError(f"{self}: {_reason(error)}") from error
        except Exception as error:
            if self.local:
                raise
            raise StorageError(f"{self}: {_reason(error)}") from error  # botocore's errors are no OSError


def _native_file(path: Path) -> Any:
    """A file of a disk, opened by Arrow; raises what Python's own would."""
    import pyarrow as pa

    try:
        return pa.OSFile(os.fsencode(path), "rb")
    except OSError as error:
        if error.errno is None:  # a folder, say
            raise
        raise OSError(error.errno, os.strerror(error.errno)) from None


def _reason(error: BaseException) -> str:
    """What an error says, in one line."""
    return in_one_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
