"""A run's folder: plans that read back, parts that count as done, one driver at a time."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.summary import SUMMARISED, summarise
from cluster.store import Plan, RunFolder
from tests.conftest import random_images, random_model
from workers.attacks import FGSM
from workers.errors import StorageError, WrongInput
from workers.parquet import read_table
from workers.places import Place
from workers.results import write_part
from workers.search import search_budgets

ROOT = Path(__file__).parent.parent.parent
ATTACKS = FGSM.at_each_budget({"epsilon": [0.2, 0.1]})


def place_for(place: Place) -> RunFolder:
    """A run's folder as a driver that holds it finds it."""
    if place.local:
        place.path.mkdir()
    return RunFolder(place)


def a_plan(count: int = 10, size: int = 4, *, targeted: bool = True) -> Plan:
    targets = np.arange(count) % 3 if targeted else None
    hashes = tuple(attack.params_hash for attack in ATTACKS)
    return Plan({"attack": "fgsm", "seed": 0}, {"model": "m"}, np.arange(count) * 7, targets, hashes, size)


def write_shard(folder: RunFolder, plan: Plan, shard: int, *, shift: int = 0) -> None:
    rows = plan.span(shard)
    model, shape, _ = random_model("grey", 50)
    images = random_images(shape, len(plan.ids[rows]), 51)
    targets = None if plan.targets is None else plan.targets[rows]
    labels = np.full(len(images), 3)
    results = search_budgets(ATTACKS, model, images, labels, targets=targets, ids=plan.ids[rows] + shift)
    write_part(pa.concat_tables([result.to_table() for result in results]), folder.part(shard))


@pytest.mark.parametrize("targeted", [True, False])
def test_a_plan_reads_back(tmp_path: Path, targeted: bool) -> None:
    plan, folder = a_plan(targeted=targeted), RunFolder(Place.of(tmp_path / "run"))
    assert not folder.exists
    folder.create(plan)
    found = folder.plan()
    assert (found.frozen, found.recorded, found.shard_size) == (plan.frozen, plan.recorded, 4)
    assert np.array_equal(found.ids, plan.ids)
    assert np.array_equal(found.targets, plan.targets) if targeted else found.targets is None
    assert [found.span(shard) for shard in range(found.shards)] == [slice(0, 4), slice(4, 8), slice(8, 10)]


def test_done_is_a_whole_part_with_its_own_rows(free_place: Place) -> None:
    plan, folder = a_plan(), place_for(free_place)
    folder.create(plan)
    for shard in range(3):
        write_shard(folder, plan, shard)
    assert folder.done(plan) == [0, 1, 2]
    whole = folder.part(1).read()
    folder.part(1).write(whole[:-20])
    assert folder.done(plan) == [0, 2]
    assert folder.damaged([0, 2]) == ["part-000001.parquet"]
    write_shard(folder, plan, 1, shift=1)
    assert folder.done(plan) == [0, 2]
    folder.part(1).write(folder.part(0).read())
    assert folder.done(plan) == [0, 2]
    table = pq.read_table(io.BytesIO(folder.part(2).read()))
    write_part(table.slice(0, len(table) // 2), folder.part(2))  # one of the two budgets
    assert folder.done(plan) == [0]


def test_a_part_that_is_listed_but_not_there_is_not_done(tmp_path: Path) -> None:
    plan, folder = a_plan(), place_for(Place.of(tmp_path / "run"))
    folder.create(plan)
    for shard in (0, 2):
        write_shard(folder, plan, shard)
    folder.part(1).path.symlink_to(tmp_path / "nowhere")
    assert folder.done(plan) == [0, 2]
    assert sum(len(table) for table in folder.tables(plan)) == 12


def test_a_part_of_another_schema_is_not_done(tmp_path: Path) -> None:
    plan, folder = a_plan(), place_for(Place.of(tmp_path / "run"))
    folder.create(plan)
    for shard in range(3):
        write_shard(folder, plan, shard)
    rows = pq.read_table(folder.part(1).path)
    write_part(rows.drop_columns(["image_id"]), folder.part(1))
    write_part(rows.select(["target", "status"]), folder.part(2))
    assert folder.done(plan) == [0]
    assert folder.failed(plan) == {}
    assert [len(table) for table in folder.tables(plan)] == [4, 4]
    with folder.locked():
        folder.sweep(plan)
        assert folder.compactable(plan) == 1


def test_rows_are_those_of_the_plan(free_place: Place) -> None:
    plan, folder = a_plan(), place_for(free_place)
    folder.create(plan)
    with pytest.raises(WrongInput, match="no results yet"):
        folder.tables(plan)
    for shard in (2, 0):
        write_shard(folder, plan, shard)
    (folder.parts / "part-000009.parquet").write(folder.part(0).read())
    folder.part(1).write(b"broken")
    tables = folder.tables(plan)
    assert len(tables) == 2
    for attack, table in zip(ATTACKS, tables, strict=True):
        assert table["image_id"].to_pylist() == [int(i) for i in [*plan.ids[:4], *plan.ids[8:]]]
        assert set(table["params_hash"].to_pylist()) == {attack.params_hash}


def test_broken_plans_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(Place.of(tmp_path / "run"))
    with pytest.raises(WrongInput, match="it has no"):
        folder.plan()
    folder.create(a_plan())
    (folder.place / "plan.parquet").write(b"no")
    with pytest.raises(WrongInput, match="plan cannot be read"):
        folder.plan()
    folder.create(a_plan())
    content = json.loads((folder.place / "run.json").read())
    for broken in ("{", json.dumps({**content, "images": 11}), json.dumps({"frozen": {}})):
        (folder.place / "run.json").write(broken.encode())
        with pytest.raises(WrongInput, match="plan cannot be read"):
            folder.plan()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(WrongInput, match="not a run's folder"):
        RunFolder(Place.of(tmp_path)).require_usable()
    with pytest.raises(WrongInput, match="not a folder"):
        RunFolder(Place.of(tmp_path / "mine.txt")).require_usable()
    RunFolder(Place.of(tmp_path / "absent")).require_usable()


@pytest.mark.parametrize(
    "name",
    [
        "parts-of-thesis.txt",
        "parts",
        "parts/mine.parquet",
        ".lock-picking.md",
        ".lease-contract",
        ".run.json.bak",
        ".x.tmp",
    ],
)
def test_a_folder_with_a_file_that_is_called_almost_like_ours_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(WrongInput, match="not a run's folder"):
        RunFolder(Place.of(tmp_path)).require_usable()


def test_a_plan_of_somebody_else_is_left_alone(free_place: Place) -> None:
    folder = place_for(free_place)
    theirs = pa.table({"image_id": [1], "target": pa.array([2], pa.int32()), "remark": ["mine"]})
    for content in (theirs, theirs.select(["target", "image_id"])):
        write_part(content, folder.place / "plan.parquet")
        with pytest.raises(WrongInput, match="not a run's folder"):
            folder.require_usable()
    (folder.place / "plan.parquet").write(b"no Parquet at all")
    with pytest.raises(WrongInput, match="not a run's folder"):
        folder.require_usable()


def test_a_start_that_was_killed_before_its_plan_was_frozen_is_ours(free_place: Place) -> None:
    folder = place_for(free_place)
    folder.create(a_plan())
    (folder.place / "run.json").remove()
    left = [".lease-000001", ".run.json.0123456789ab.tmp", ".plan.parquet.0123456789ab.tmp"]
    left += [".lock"] if free_place.local else []
    for name in left:
        (folder.place / name).write(b"")
    for name in (".probe-0123456789abcdef.tmp", "..probe-0123456789abcdef.tmp.0123456789ab.tmp"):
        (folder.parts / name).write(b"")
    folder.require_usable()
    folder.create(a_plan())
    folder.require_usable()


def test_sweep_takes_temporary_files_only(free_place: Place) -> None:
    plan, folder = a_plan(), place_for(free_place)
    folder.create(plan)
    write_shard(folder, plan, 0)
    stale = [
        folder.parts / ".part-000001.parquet.0.tmp",
        folder.place / ".run.json.7.tmp",
        folder.parts / ".probe-0.tmp",
    ]
    for path in stale:
        path.write(b"half")
    folder.sweep()
    assert not any(path.exists() for path in stale)
    assert folder.done(plan) == [0]


def test_summaries_read_their_columns_only(free_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, folder = a_plan(), place_for(free_place)
    folder.create(plan)
    for shard in range(3):
        write_shard(folder, plan, shard)
    read: set[str] = set()
    known = pq.ParquetFile.read

    def watched(file: pq.ParquetFile, columns: list[str] | None = None, **how: bool) -> pa.Table:
        read.update(columns or file.schema_arrow.names)
        return known(file, columns=columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "read", watched)
    light, whole = folder.tables(plan, SUMMARISED), RunFolder(free_place)
    assert read == {*SUMMARISED, "target"}
    for table, full in zip(light, whole.tables(plan), strict=True):
        assert table == full.select(SUMMARISED)
        assert summarise(table) == summarise(full)


def test_many_parts_come_in_batches_and_in_order(tmp_path: Path) -> None:
    plan, folder = a_plan(700, 1), RunFolder(Place.of(tmp_path))
    folder.create(plan)
    write_shard(folder, plan, 0)
    one = read_table(folder.part(0))
    for shard in range(700):
        keys = {"image_id": [plan.ids[shard]] * 2, "target": [shard % 3] * 2}
        row = one
        for name, values in keys.items():
            index = row.schema.get_field_index(name)
            row = row.set_column(index, row.schema.field(name), pa.array(values, row.schema.field(name).type))
        write_part(row, folder.part(shard))
    for table in folder.tables(plan, ["image_id"]):
        assert table["image_id"].to_pylist() == plan.ids.tolist()
        assert table["image_id"].num_chunks < 256
    batches = list(folder.batches(plan, 100))
    assert [len(tables[0]) for tables in batches] == [100] * 7
    assert [image for tables in batches for image in tables[1]["image_id"].to_pylist()] == plan.ids.tolist()


def test_a_plan_on_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    folder, ballast = RunFolder(Place.of(small_disk) / "run"), small_disk / "ballast"
    folder.place.path.mkdir()
    with pytest.raises(StorageError, match=r"run.json: No space left on device|plan.parquet: No space left"):
        folder.create(replace(a_plan(), frozen={"attack": "x" * 100_000}))
    assert folder.place.names() == []
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    with pytest.raises(StorageError, match="No space left on device"), folder.locked():
        folder.create(a_plan())
    assert folder.place.names() == []
    ballast.unlink()
    with folder.locked():
        folder.create(a_plan())
    assert folder.exists


def test_a_refused_start_leaves_the_next_driver_its_lock(tmp_path: Path) -> None:
    folder = RunFolder(Place.of(tmp_path / "new" / "run"))
    with folder.locked():
        folder.create(a_plan())
        folder.forget()
        with pytest.raises(WrongInput, match="another brittle"), folder.locked():
            pass
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from cluster.store import RunFolder
from workers.places import Place
with RunFolder(Place.of(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_driver_and_a_killed_one_frees_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(Place.of(tmp_path))
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert folder.busy()
        with pytest.raises(WrongInput, match="another brittle"), folder.locked():
            pass
        other.kill()
    assert not folder.busy()
    with folder.locked():
        assert folder.busy()
