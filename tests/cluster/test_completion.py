"""Runs whose rows had to be searched one by one: what failed is recorded, kept, searched again when asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.completion import Completion
from cluster.singles import Singles
from cluster.store import Plan, RunFolder
from jobs.main import main
from tests.conftest import random_images
from workers.evaluation.dense import DenseEvaluator
from workers.images import Dataset
from workers.models.loading import read_model
from workers.places import Place
from workers.results import Status, write_part

ARMED_MODEL = """
import os, pathlib, torch
class Armed(torch.nn.Module):
    '''Kills its process when it sees level 200 in a corner, as long as a file says so.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 3)
    def forward(self, x):
        if pathlib.Path({armed!r}).exists() and (x[:, 0, 0, 0] * 255).round().eq(200).any():
            os.kill(os.getpid(), 9)
        return self.linear(x.flatten(1))
"""
POISONED = 7


@pytest.fixture
def armed(kept_ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose presence, not there yet, makes a model deadly on one of the images in this folder."""
    armed = kept_ray / "armed"
    armed.unlink(missing_ok=True)
    (kept_ray / "armed_model.py").write_text(ARMED_MODEL.format(armed=str(armed)))
    images = random_images((1, 4, 4), 18, 0) // 2
    images[POISONED, 0, 0, 0] = 200
    monkeypatch.chdir(tmp_path)
    model = read_model("armed_model:Armed").build()
    labels = DenseEvaluator(model).logits(torch.tensor(images)).argmax(dim=1).numpy()
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    return armed


def search(out: str, *flags: str) -> int:
    given = [
        "--model",
        "armed_model:Armed",
        "--data",
        "images.npz",
        "--shard-size",
        "6",
        "--workers",
        "2",
        "--out",
        out,
    ]
    return main(["attack", *flags, *given])


def rows(out: str, folder: str = "parts") -> list[dict[str, Any]]:
    table = pq.read_table(Path(out) / folder).sort_by([("image_id", "ascending"), ("params_hash", "ascending")])
    return [{name: row[name] for name in row if name not in ("seconds", "worker")} for row in table.to_pylist()]


def test_a_poison_image_fails_alone_and_is_searched_again_when_asked(armed: Path) -> None:
    flags = ("fgsm", "--epsilon", "0.1,0.3")
    assert search("calm", *flags) == 0
    armed.touch()
    assert search("run", *flags) == 1
    found, calm = rows("run"), rows("calm")
    failed = [row for row in found if row["status"] == "failed"]
    assert [row["image_id"] for row in failed] == [POISONED] * 2
    assert all("died" in row["error"] for row in failed)
    assert [row for row in found if row["image_id"] != POISONED] == [r for r in calm if r["image_id"] != POISONED]
    assert {path.name for path in Path("run").iterdir()} == {"run.json", "plan.parquet", "parts"}

    armed.unlink()
    assert search("run", *flags) == 1
    assert rows("run") == found
    assert main(["compact", "run"]) == 0
    assert rows("run") == found
    assert search("run", *flags, "--retry-failed") == 0
    assert rows("run") == calm
    assert main(["verify", "run"]) == 0


def test_staged_rows_are_not_searched_again(armed: Path) -> None:
    flags = ("one-pixel-exact", "--levels", "extremes")
    assert search("run", *flags) == 0
    whole, beside = rows("run"), rows("run", "by-products")
    folder = RunFolder(Place.of("run"))
    plan = folder.plan()
    singles = Singles(folder, plan)
    for table, part, place in (
        (pq.read_table("run/parts/part-000001.parquet"), folder.part(1), singles.part),
        (pq.read_table("run/by-products/part-000001.parquet"), folder.by_products(1), singles.by_products),
    ):
        for row in range(5):  # all but the last of its six, the poisoned one among them
            place(1, row).path.parent.mkdir(exist_ok=True)
            pq.write_table(table.slice(row, 1), place(1, row).path)
        part.remove()
    armed.touch()  # so that searching the staged row again would fail
    assert search("run", *flags) == 0
    assert rows("run") == whole
    assert sorted(map(str, rows("run", "by-products"))) == sorted(map(str, beside))
    assert {path.name for path in Path("run").iterdir()} == {"run.json", "plan.parquet", "parts", "by-products"}


def begun(place: Place) -> tuple[RunFolder, Plan]:
    """A run of six shards of two rows whose rows were searched one by one and are all staged, its last but one.

    That row is in the shard's part, where the other one failed. Row 0 of shard 2 failed when it was staged.
    """
    folder, plan = RunFolder(place), Plan({}, {}, np.arange(12), None, ("budget",), 2)
    place.path.mkdir()
    folder.create(plan)
    singles = Singles(folder, plan)
    for shard in range(6):
        for row in range(2 if shard < 5 else 1):
            status = Status.FAILED if (shard, row) == (2, 0) else Status.SUCCESS
            write_part(table([2 * shard + row], [status]), singles.part(shard, row))
    write_part(table([10, 11], [Status.FAILED, Status.SUCCESS]), folder.part(5))
    return folder, plan


def table(ids: list[int], statuses: list[Status]) -> pa.Table:
    nothing = pa.nulls(len(ids), pa.int32())
    return pa.table({"image_id": ids, "target": nothing, "status": pa.array(map(str, statuses)).dictionary_encode()})


def completion(folder: RunFolder, plan: Plan, *, retry_failed: bool = False) -> Completion:
    images = Dataset(np.zeros((12, 1, 2, 2), np.uint8), np.zeros(12, np.int64), "all", "nothing")
    return Completion(folder, plan, (), images, done=folder.done(plan), retry_failed=retry_failed)


def test_folders_are_listed_once_however_many_shards_are_narrowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = begun(Place.of(tmp_path / "run"))
    listed: list[str] = []
    names = Place.names

    def watched(place: Place) -> list[str]:
        listed.append(place.name)
        return names(place)

    monkeypatch.setattr(Place, "names", watched)
    left = completion(folder, plan)
    assert sorted(listed) == ["parts", "parts", "singles"]  # once to see what is done
    assert (left.rows_left, left.shards_left) == (0, 0)
    assert folder.done(plan) == list(range(6))
    assert folder.failed(plan) == {2: {0}}
    assert (folder.place / "singles").names() == []


def test_a_staged_row_that_failed_is_searched_again_when_asked(tmp_path: Path) -> None:
    folder, plan = begun(Place.of(tmp_path / "run"))
    left = completion(folder, plan, retry_failed=True)
    assert (left.rows_left, left.shards_left) == (1, 1)
    assert folder.done(plan) == [0, 1, 3, 4, 5]
    assert (folder.place / "singles").names() == ["part-000002-000000.parquet", "part-000002-000001.parquet"]
