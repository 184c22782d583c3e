"""Parquet files, read so that no thread of Arrow's pools ever holds an object of Python's.

Such a thread would have to ask for the interpreter in order to let go of it. Where the interpreter is just ending, the
thread is ended instead, inside a destructor, and the whole process aborts (exit code 134). So all reading is done here:
files of a disk are Arrow's own, and what only Python can read is read by the thread that asks.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.places import Place

__all__ = ["read_footer", "read_table"]


def read_table(where: Place | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one Parquet file.

    Args:
        where: the file.
        columns: what to read of each row; all when None. Names that the file does not have are left out.

    Raises:
        FileNotFoundError: when it is absent.
        StorageError: when it cannot be reached.
        OSError, pyarrow.ArrowException: when it is no Parquet file, or broken.
    """
    place = Place.of(where)
    with place.open() as file:
        opened = _parquet(place, file)
        names = opened.schema_arrow.names
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise pa.ArrowInvalid(f"column {twice[0]} is there {names.count(twice[0])} times")
        return opened.read(columns=None if columns is None else list(columns), use_threads=place.local)


def read_footer(where: Place | Path) -> Any:
    """The `pyarrow.parquet.FileMetaData` of a Parquet file.

    Raises:
        FileNotFoundError, StorageError, OSError, pyarrow.ArrowException: as of `read_table`.
    """
    place = Place.of(where)
    with place.open() as file:
        return _parquet(place, file).metadata


def _parquet(place: Place, file: Any) -> Any:
    return pq.ParquetFile(file, pre_buffer=place.local)
