"""The Parquet files of a run: one a shard as workers write them, or one for many shards after compaction."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import TypeVar

import pyarrow as pa

from workers.errors import StorageError
from workers.parquet import read_footer, read_table
from workers.places import Place
from workers.results import write_part

__all__ = [
    "PartFile",
    "ShardRows",
    "compact",
    "innermost_first",
    "part_files",
    "part_name",
    "read_ahead",
    "settle",
    "uncompressed_bytes",
]

READERS = 16
"""Files read at once: an object store answers each after tens of milliseconds."""

TARGET_BYTES = 128 * 2**20
"""Of a compacted file, uncompressed: who reads it whole must hold it."""

AHEAD_BYTES = 2 * TARGET_BYTES
"""Of whole files that are read before they are needed."""

ROW_GROUP = 8192

_NAME = re.compile(r"part-(\d{6,})(?:-(\d{6,}))?\.parquet")
_COUNTS = b"brittle.shard_rows"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, order=True)
class PartFile:
    """A file by the shards that it holds, from the first to the last, both included.

    Files of one folder lie beside each other or one within the other. A shard's rows are those of the narrowest
    file that holds it: a file for many shards may appear while theirs are still there, and a shard that is
    searched again is simply written again.
    """

    first: int
    last: int
    place: Place

    @property
    def shards(self) -> range:
        """The shards that it holds."""
        return range(self.first, self.last + 1)


def part_name(first: int, last: int | None = None) -> str:
    """The name of a shard's file, or of the file of all shards from the first to the last."""
    return f"part-{first:06d}.parquet" if last is None else f"part-{first:06d}-{last:06d}.parquet"


def part_files(folder: Place) -> list[PartFile]:
    """The files that are in a folder now, by their first shard, a wide one before those within it."""
    found = []
    for name in folder.names():
        if match := _NAME.fullmatch(name):
            first = int(match[1])
            found.append(PartFile(first, int(match[2] or first), folder / name))
    return sorted(found, key=lambda file: (file.first, -file.last))


def innermost_first(files: Sequence[PartFile]) -> Iterator[list[PartFile]]:
    """Groups `part_files` by the widest, those within it before it; the groups are in the order of shards."""
    group: list[PartFile] = []
    for file in files:
        if group and file.first > group[0].last:
            yield group[::-1]
            group = []
        group.append(file)
    if group:
        yield group[::-1]


def read_ahead(
    function: Callable[[Item], Result], items: Sequence[Item], size: Callable[[Item], int] | None = None
) -> Iterator[Result]:
    """Maps a function that waits for a filesystem over items, in order, a few at once.

    Args:
        function: what to call.
        items: its arguments.
        size: bytes of an item's result, where results are large: those that are ready or under way are then
            `AHEAD_BYTES` together at most, or one alone. It may wait for the filesystem too.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    ahead = 0
    sizes = repeat(0) if size is None else read_ahead(size, items)
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for item, more in zip(items, sizes, strict=False):
                while waiting and (len(waiting) > READERS or ahead + more > AHEAD_BYTES):
                    future, less = waiting.popleft()
                    ahead -= less
                    yield future.result()
                waiting.append((pool.submit(function, item), more))
                ahead += more
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


class ShardRows:
    """The rows of single shards, for who holds a folder and does not compact it meanwhile.

    A shard's own file is asked for by its name; those for many shards are listed once, when first needed.

    Args:
        folder: of the files.
        valid: whether a file that can be read holds what its name says.
    """

    def __init__(self, folder: Place, valid: Callable[[PartFile, pa.Table], bool]) -> None:
        self._folder, self._valid = folder, valid

    def of(self, shard: int) -> pa.Table | None:
        """The rows of one shard, None when no valid file holds it."""
        own = PartFile(shard, shard, self._folder / part_name(shard))
        if (table := _read(own, self._valid)) is not None:
            return table
        for file in self._wide:
            if shard in file.shards and (table := _read(file, self._valid)) is not None:
                rows = _by_shard(file, table)[shard]
                metadata = {key: value for key, value in (rows.schema.metadata or {}).items() if key != _COUNTS}
                return rows.replace_schema_metadata(metadata)
        return None

    @cached_property
    def _wide(self) -> list[PartFile]:
        """The files for many shards, the narrowest first."""
        wide = [file for file in part_files(self._folder) if file.first < file.last]
        return sorted(wide, key=lambda file: len(file.shards))


def settle(folder: Place, valid: Callable[[PartFile, pa.Table], bool], confirm: Callable[[], None]) -> None:
    """Leaves each shard in one file: ends what a killed compaction began, and takes in what was searched again.

    A wide file is written anew where a file within it says something else, and then those within it are removed;
    killed at any moment, the next call does the rest.

    Args:
        folder: of the files.
        valid: whether a file that can be read holds what its name says.
        confirm: called before anything is changed; raises when the folder belongs to another.
    """
    for group in innermost_first(part_files(folder)):
        if len(group) == 1:
            continue
        wide = group[-1]
        within = [file for file in group[:-1] if file.last <= wide.last]
        whole = _read(wide, valid)
        if whole is None:  # what lies within it is all there is
            confirm()
            wide.place.remove()
            continue
        rows = _by_shard(wide, whole)
        for file in reversed(within):  # the innermost has the last word
            if (table := _read(file, valid)) is not None:
                rows |= _by_shard(file, table)
        settled = _joined(rows)
        confirm()
        if not settled.equals(whole):
            write_part(settled, wide.place, row_group_size=ROW_GROUP)
        for file in within:
            confirm()
            file.place.remove()


def compact(
    folder: Place,
    usable: Sequence[PartFile],
    confirm: Callable[[], None],
    *,
    target_bytes: int = TARGET_BYTES,
    on_files: Callable[[int], None] = lambda count: None,
) -> int:
    """Merges files of neighbouring shards; a folder that is settled stays so.

    A merged file is whole when it appears, and only then those that it was made of are removed. Killed in
    between, `settle` removes the rest.

    Args:
        folder: of the files.
        usable: the files that may be merged, in the order of their shards, none within another.
        confirm: called before anything is changed; raises when the folder belongs to another.
        target_bytes: a merged file has about so many, uncompressed.
        on_files: called with the number of files just dealt with.

    Returns:
        How many files are left of the usable ones.
    """
    left = 0
    for group in _neighbours(usable, target_bytes):
        if len(group) > 1:
            rows: dict[int, pa.Table] = {}
            for file, table in zip(group, read_ahead(lambda file: read_table(file.place), group), strict=True):
                rows |= _by_shard(file, table)
            confirm()
            name = part_name(group[0].first, group[-1].last)
            write_part(_joined(rows), folder / name, row_group_size=ROW_GROUP)
            for file in group:
                confirm()
                file.place.remove()
        on_files(len(group))
        left += 1
    return left


def _neighbours(files: Sequence[PartFile], target_bytes: int) -> Iterator[list[PartFile]]:
    """Groups of files to merge: their shards follow each other, and together they are as large as wanted."""
    group: list[PartFile] = []
    total = 0
    for file, size in zip(files, read_ahead(uncompressed_bytes, files), strict=True):
        if group and (file.first != group[-1].last + 1 or total + size > target_bytes):
            yield group
            group, total = [], 0
        group.append(file)
        total += size
    if group:
        yield group


def uncompressed_bytes(file: PartFile) -> int:
    """What a file's rows take, from its footer; 0 for one that is broken.

    Raises:
        StorageError: when it cannot be reached.
    """
    try:
        footer = read_footer(file.place)
        return sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    except StorageError:
        raise
    except (OSError, pa.ArrowException):
        return 0


def _read(file: PartFile, valid: Callable[[PartFile, pa.Table], bool]) -> pa.Table | None:
    """A file's rows, None when it is broken."""
    try:
        table = read_table(file.place)
    except StorageError:
        raise
    except (OSError, pa.ArrowException):
        return None
    return table if valid(file, table) else None


def _by_shard(file: PartFile, table: pa.Table) -> dict[int, pa.Table]:
    """The rows of each shard of a file."""
    metadata = table.schema.metadata or {}
    counts = json.loads(metadata[_COUNTS]) if _COUNTS in metadata else [len(table)]
    if len(counts) != len(file.shards) or sum(counts) != len(table):
        raise StorageError(f"{file.place}: holds other shards than its name says")
    found, start = {}, 0
    for shard, count in zip(file.shards, counts, strict=True):
        found[shard] = table.slice(start, count)
        start += count
    return found


def _joined(rows: dict[int, pa.Table]) -> pa.Table:
    """The rows of shards that follow each other as one table that says where each begins."""
    shards = sorted(rows)
    parts = [rows[shard].replace_schema_metadata(None) for shard in shards]
    table = pa.concat_tables(parts, promote_options="default").combine_chunks()
    metadata = dict(rows[shards[0]].schema.metadata or {})
    metadata[_COUNTS] = json.dumps([len(rows[shard]) for shard in shards]).encode()
    return table.replace_schema_metadata(metadata)
