"""Compaction: killed before every write and removal it makes, no row is lost or doubled."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.parts import part_files, part_name, uncompressed_bytes
from cluster.store import Plan, RunFolder
from workers.places import Place
from workers.results import write_part

ROOT = Path(__file__).parent.parent.parent
BUDGETS = ("small", "large")

# Forks before anything has threads: the child is killed before its n-th change of the folder.
KILLED = """
import os, signal, sys
import pyarrow.parquet, s3fs
from cluster.store import RunFolder
from workers.places import Place

def counted(change):
    def wrapped(self, *arguments):
        if not self.name.startswith(".lease"):
            global left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return change(self, *arguments)
    return wrapped

for line in sys.stdin:
    left = int(line)
    child = os.fork()
    if not child:
        Place.write, Place.remove = counted(Place.write), counted(Place.remove)
        folder = RunFolder(Place.of(sys.argv[1]))
        plan = folder.plan()
        with folder.locked():
            folder.sweep(plan)
            folder.compact(plan, lambda count: None)
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def a_plan(shards: int) -> Plan:
    """Two rows a shard and budget, one in the last."""
    return Plan({}, {}, np.arange(2 * shards - 1) * 3, None, BUDGETS, 2)


def rows_of(plan: Plan, shard: int, found: int = 0) -> pa.Table:
    """A shard's rows, a budget after the other; `found` tells one search from another."""
    ids = plan.ids[plan.span(shard)]
    keys = {"image_id": np.tile(ids, 2), "target": pa.nulls(2 * len(ids), pa.int32())}
    status = pa.array(["success", "exhausted"])[: len(ids)].dictionary_encode()
    values = {
        "budget": np.repeat(BUDGETS, len(ids)),
        "status": pa.concat_arrays([status, status]),
        "found": [found] * (2 * len(ids)),
    }
    return pa.table(keys | values)


def beside(plan: Plan, shard: int, found: int = 0) -> pa.Table:
    """By-products: the first image of a shard only, as where the search for others broke."""
    return rows_of(plan, shard, found).slice(0, 1)


def write(folder: RunFolder, plan: Plan, shards: "range | list[int]", found: int = 0) -> None:
    for shard in shards:
        write_part(beside(plan, shard, found), folder.by_products(shard))
        write_part(rows_of(plan, shard, found), folder.part(shard))


def seen(folder: RunFolder, plan: Plan) -> list[list[tuple[int, int]]]:
    """What a reader sees: image and search of every row, for each budget."""
    tables = folder.tables(plan, ["image_id", "found", "budget"])
    for budget, table in zip(BUDGETS, tables, strict=True):
        assert set(table["budget"].to_pylist()) == {budget}
    return [[(row["image_id"], row["found"]) for row in table.to_pylist()] for table in tables]


def raw(place: Place) -> list[tuple[int, int]]:
    """What anybody's Parquet reader sees in a folder."""
    if place.local:
        table = pq.read_table(place.path)
    else:
        import s3fs

        table = pq.read_table(place.uri.removeprefix("s3://"), filesystem=s3fs.S3FileSystem(use_listings_cache=False))
    return sorted((row["image_id"], row["found"]) for row in table.to_pylist())


def check_raw(folder: RunFolder, plan: Plan, found: "dict[int, int] | None" = None) -> None:
    """Each row of each folder is there once."""
    found, shards = found or {}, range(plan.shards)
    assert raw(folder.parts) == sorted(
        (int(image), found.get(shard, 0)) for shard in shards for image in plan.ids[plan.span(shard)] for _ in BUDGETS
    )
    assert raw(folder.place / "by-products") == [
        (int(plan.ids[plan.span(shard)][0]), found.get(shard, 0)) for shard in shards
    ]


def empty(folder: RunFolder) -> None:
    for place in (folder.parts, folder.place / "by-products"):
        for name in place.names():
            (place / name).remove()


@pytest.fixture
def killer(free_place: Place) -> Iterator["subprocess.Popen[str]"]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", KILLED, str(free_place)]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, env=dict(os.environ)) as process:
        yield process


def run_killed(process: "subprocess.Popen[str]", changes: int) -> bool:
    """Compacts in a process that is killed after some changes; whether it was."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{changes}\n")
    process.stdin.flush()
    code = int(process.stdout.readline())
    assert code in (0, -9)
    return code == -9


def test_killed_before_every_change(free_place: Place, killer: "subprocess.Popen[str]") -> None:
    plan, folder = a_plan(4), RunFolder(free_place)
    if free_place.local:
        free_place.path.mkdir()
    folder.create(plan)
    kills = 0
    while True:
        empty(folder)
        write(folder, plan, range(4))
        before = seen(folder, plan)
        killed = run_killed(killer, kills)
        assert seen(folder, plan) == before
        assert folder.done(plan) == [0, 1, 2, 3]
        if not killed:
            break
        with folder.locked():
            folder.sweep(plan)  # what the run's next start does
        check_raw(folder, plan)
        assert seen(folder, plan) == before
        kills += 1
    assert kills == 2 + 8  # two files for eight
    check_raw(folder, plan)
    assert [file.place.name for file in part_files(folder.parts)] == ["part-000000-000003.parquet"]


@pytest.mark.parametrize("free_place", ["disk"], indirect=True)
def test_a_shard_searched_again_takes_its_place(free_place: Place, killer: "subprocess.Popen[str]") -> None:
    plan, folder = a_plan(4), RunFolder(free_place)
    free_place.path.mkdir()
    folder.create(plan)
    for kills in range(9):
        empty(folder)
        write(folder, plan, range(4))
        assert not run_killed(killer, 1000)
        write(folder, plan, [1, 3], found=7)
        after = seen(folder, plan)
        assert after[0] == [(0, 0), (3, 0), (6, 7), (9, 7), (12, 0), (15, 0), (18, 7)]
        killed = run_killed(killer, kills)
        assert seen(folder, plan) == after
        if not killed:
            break
    assert kills == 6  # each folder: the merged file anew, two files removed
    check_raw(folder, plan, {1: 7, 3: 7})


def test_what_is_not_done_stays_to_be_done(tmp_path: Path) -> None:
    plan, folder = a_plan(9), RunFolder(Place.of(tmp_path))
    folder.create(plan)
    write(folder, plan, [0, 1, 2, 4, 5, 7])
    folder.part(5).write(b"broken")
    dealt: list[int] = []
    with folder.locked():
        assert folder.compactable(plan) == 5 + 5
        folder.compact(plan, dealt.append)
    assert sum(dealt) == 10
    names = [file.place.name for file in part_files(folder.parts)]
    assert names == ["part-000000-000002.parquet", *(f"part-00000{shard}.parquet" for shard in (4, 5, 7))]
    assert folder.done(plan) == [0, 1, 2, 4, 7]
    before = seen(folder, plan)
    write(folder, plan, [3, 5, 6, 8])
    assert folder.done(plan) == list(range(9))
    with folder.locked():
        folder.compact(plan, dealt.append)
    assert [file.place.name for file in part_files(folder.parts)] == ["part-000000-000008.parquet"]
    assert set(before[0]) < set(seen(folder, plan)[0])
    check_raw(folder, plan)


def test_files_grow_to_their_size_and_no_further(tmp_path: Path) -> None:
    plan, folder = a_plan(20), RunFolder(Place.of(tmp_path))
    folder.create(plan)
    write(folder, plan, range(20))
    before = seen(folder, plan)
    with folder.locked():
        folder.compact(plan, lambda count: None, target_bytes=1500)
        names = folder.parts.names()
        assert 1 < len(names) < 15
        folder.compact(plan, lambda count: None, target_bytes=1500)
        folder.compact(plan, lambda count: None, target_bytes=1)
        assert len(folder.parts.names()) <= len(names)
    assert seen(folder, plan) == before
    check_raw(folder, plan)


def test_a_broken_merged_file_gives_way_to_what_lies_within(tmp_path: Path) -> None:
    plan, folder = a_plan(3), RunFolder(Place.of(tmp_path))
    folder.create(plan)
    write(folder, plan, range(3))
    (folder.parts / "part-000000-000002.parquet").write(b"broken")
    before = seen(folder, plan)
    with folder.locked():
        folder.sweep(plan)
    assert seen(folder, plan) == before
    check_raw(folder, plan)


def test_a_reader_whose_files_are_merged_meanwhile(free_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, folder = a_plan(4), RunFolder(free_place)
    if free_place.local:
        free_place.path.mkdir()
    folder.create(plan)
    write(folder, plan, range(4))
    before, names = seen(folder, plan), part_files
    merged: list[int] = []

    def listed_then_merged(place: Place) -> list[object]:
        found = names(place)
        if not merged:
            merged.append(1)
            RunFolder(free_place).compact(plan, lambda count: None)
        return list(found)

    monkeypatch.setattr("cluster.store.part_files", listed_then_merged)
    assert seen(folder, plan) == before
    assert len(part_files(folder.parts)) == 1


def test_the_rows_of_a_shard_are_those_of_the_narrowest_valid_file(
    free_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = a_plan(8), RunFolder(free_place)
    if free_place.local:
        free_place.path.mkdir()
    folder.create(plan)
    write(folder, plan, range(4))
    folder.compact(plan, lambda count: None)
    write(folder, plan, [1, 5, 6], found=7)
    write_part(rows_of(plan, 5), folder.part(2))  # another's rows
    folder.part(3).write(b"broken")
    (folder.parts / part_name(4, 6)).write(b"broken")
    listed, names = [], part_files
    monkeypatch.setattr("cluster.parts.part_files", lambda place: listed.append(place.name) or names(place))
    by_products, parts = folder.shard_rows(plan)
    for shard, found in enumerate([0, 7, 0, 0, None, 7, 7, None]):
        for reader, expected in ((parts, rows_of), (by_products, beside)):
            rows = reader.of(shard)
            assert rows == (None if found is None else expected(plan, shard, found))
    assert sorted(listed) == ["by-products", "parts"]


def test_whole_files_are_read_ahead_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, folder = a_plan(40), RunFolder(Place.of(tmp_path))
    folder.create(plan)
    write(folder, plan, range(40))
    folder.part(20).write(b"broken")
    size = uncompressed_bytes(part_files(folder.parts)[0])
    assert size > 0
    read: list[pq.ParquetFile] = []
    known = pq.ParquetFile.read

    def watched(file: pq.ParquetFile, columns: list[str] | None = None, **how: bool) -> pa.Table:
        read.append(file)
        return known(file, columns=columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "read", watched)
    for limit, most in ((size // 2, 1), (3 * size, 4), (1000 * size, 17)):
        monkeypatch.setattr("cluster.parts.AHEAD_BYTES", limit)
        read.clear()
        taken = 0
        for tables in folder.batches(plan, 1):
            taken += len(tables)
            assert len(read) <= taken // 2 + most
        assert (taken, len(read)) == (2 * 39, 39)
