"""The attack command on a real Ray: same results anywhere, crashes, resumption, replay."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from jobs.main import main
from workers.models.cnn import CNN

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.usefixtures("kept_ray")


def attack(model: Path, out: Path, *flags: str) -> list[str]:
    return ["attack", flags[0], "--model", str(model), "--data", "mnist", "--out", str(out), *flags[1:]]


def rows(run: Path) -> list[dict[str, Any]]:
    """Every row of a run without what may differ, in the order of its key."""
    table = pq.read_table(run / "parts").drop_columns(["seconds", "worker"])
    return sorted(table.to_pylist(), key=lambda row: (row["image_id"], row["target"]))


def start(arguments: list[str], **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "jobs.main", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def parts(run: Path) -> int:
    return len(list((run / "parts").glob("part-*.parquet")))


def wait_for_parts(run: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while parts(run) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


JSMA = ("jsma", "--correct", "--limit", "70", "--target", "random", "--max-steps", "15")
DE = ("de", "--correct", "--limit", "12", "--pixels", "3", "--population", "40", "--generations", "6")


@pytest.mark.parametrize("flags", [JSMA, DE], ids=["jsma", "de"])
def test_same_rows_for_any_workers_and_shards(flags: tuple[str, ...], mnist_folder: Path, tmp_path: Path) -> None:
    layouts = [("1", "64"), ("2", "5"), ("2", "1")]
    found = []
    for workers, shard in layouts:
        out = tmp_path / f"{workers}-{shard}"
        assert main(attack(mnist_folder, out, *flags, "--workers", workers, "--shard-size", shard)) == 0
        found.append(rows(out))
    assert found[0] == found[1] == found[2]
    assert {row["status"] for row in found[0]} >= {"success", "exhausted"} or flags is DE
    assert len({(row["image_id"], row["target"]) for row in found[0]}) == len(found[0])


def test_killed_twice_and_resumed(mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("ifgsm", "--correct", "--limit", "240", "--target", "6", "--steps", "60", "--shard-size", "6")
    assert main(attack(mnist_folder, tmp_path / "calm", *flags)) == 0
    stormy = tmp_path / "stormy"
    for kill in range(2):
        process = start(attack(mnist_folder, stormy, *flags))
        wait_for_parts(stormy, 5 * (kill + 1), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert parts(stormy) < 40
    (stormy / "parts" / ".part-000039.parquet.0a1b.tmp").write_bytes(b"half")
    (stormy / "parts" / "part-000038.parquet").write_bytes(b"PAR1 broken")
    with contextlib.suppress(FileNotFoundError):
        (stormy / "parts" / "part-000037.parquet").unlink()
    assert main(attack(mnist_folder, stormy, *flags)) == 0
    assert not list(stormy.rglob(".*.tmp"))
    assert rows(stormy) == rows(tmp_path / "calm")
    assert main(["verify", str(stormy)]) == 0
    capsys.readouterr()
    assert main(["status", str(stormy)]) == 0
    assert "complete, 240 of 240 rows" in capsys.readouterr().out


def test_several_budgets_in_one_run(mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("fgsm", "--correct", "--limit", "30", "--shard-size", "7")
    out = tmp_path / "curve"
    assert main(attack(mnist_folder, out, *flags, "--epsilon", "0.3,0.05")) == 0
    for epsilon in ("0.05", "0.3"):
        assert main(attack(mnist_folder, tmp_path / epsilon, *flags, "--epsilon", epsilon)) == 0
    both = [*rows(tmp_path / "0.05"), *rows(tmp_path / "0.3")]
    assert sorted(both, key=str) == sorted(rows(out), key=str)
    assert main(["verify", str(out)]) == 0
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "complete, 60 of 60 rows" in said
    assert said.index("--epsilon 0.05") < said.index("--epsilon 0.3")
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert "--epsilon 0.3" in (tmp_path / "page.html").read_text()


def test_what_a_budget_comes_to_is_said_beside_what_was_typed(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.progress.LINE_SECONDS", 0.0)  # however fast it is, a line of progress is shown
    flags, out = ("fgsm", "--correct", "--limit", "6"), tmp_path / "run"
    assert main(attack(mnist_folder, out, *flags, "--epsilon", "0.031,0.00392156,8/255")) == 0
    said = capfd.readouterr()
    lost = "L∞ ε = 0.031 is 7.905 levels of 255, images have whole ones: 7/255 is searched"
    assert said.err.index(lost) < said.err.index("fgsm: ")
    assert said.err.count("is searched") == 1
    assert " at 1/255, " in said.err  # each rate of the progress has its budget
    assert " at 0.031 (7/255), " in said.err
    for shown in ("--epsilon 1/255 ", "--epsilon 0.031 (7/255) ", "--epsilon 8/255 "):
        assert f"fgsm {shown}untargeted: success" in said.out
    assert "L∞ 0.00" not in said.out
    recorded = json.loads((out / "run.json").read_text())["recorded"]
    assert sorted(threat["levels"] for threat in recorded["threats"].values()) == [1, 7, 8]
    assert {threat["epsilon"] for threat in recorded["threats"].values()} == {1 / 255, 0.031, 8 / 255}
    linf = pq.read_table(out / "parts")["linf"].to_numpy()
    assert set(np.rint(255 * linf).astype(int)) - {0} == {1, 7, 8}
    same = "0.03100,0.00392157,0.03137254901960784"  # the same run
    assert main(attack(mnist_folder, out, *flags, "--epsilon", same)) == 0
    assert main(attack(mnist_folder, out, *flags, "--epsilon", "7/255,1/255,8/255")) == 2
    assert main(["verify", str(out)]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "--epsilon</span> 0.031 (7/255), untargeted" in page
    assert "--epsilon 1/255,0.031,8/255" in page  # the command


def test_a_default_is_said_and_frozen(mnist_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, flags = tmp_path / "run", ("fgsm", "--limit", "4")
    assert main(attack(mnist_folder, out, *flags)) == 0
    said = capfd.readouterr()
    assert "L∞ ε = 0.3 (76/255): the default for such images; --epsilon takes another" in said.err
    assert "fgsm --epsilon 0.3 (76/255) untargeted" in said.out
    assert json.loads((out / "run.json").read_text())["frozen"]["parameters"] == {"epsilon": 0.3}
    assert main(attack(mnist_folder, out, *flags, "--epsilon", "3/10")) == 0  # the same run


LONG = ("ifgsm", "--limit", "400", "--steps", "400", "--target", "6", "--shard-size", "4")


def interrupt(process: "subprocess.Popen[str]", which: signal.Signals, out: Path) -> None:
    """Ends a search, which says how to resume it."""
    os.kill(process.pid, which)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    last = said.strip().splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert "run the same command again to resume" in last
    assert "Traceback" not in said
    assert not list(out.rglob("*.tmp"))


def test_terminated_says_how_to_resume(mnist_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(attack(mnist_folder, out, *LONG))
    try:
        wait_for_parts(out, 3, process)
        interrupt(process, signal.SIGTERM, out)
    finally:
        process.kill()


def test_a_second_driver_is_refused_and_the_first_interrupted(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    process = start(attack(mnist_folder, out, *LONG))
    try:
        wait_for_parts(out, 3, process)
        assert main(attack(mnist_folder, out, *LONG)) == 2
        assert "another brittle is writing" in capsys.readouterr().err
        assert main(["status", str(out)]) == 0
        assert "running" in capsys.readouterr().out
        interrupt(process, signal.SIGINT, out)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def small_run(kept_ray: Path, mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    flags = ("fgsm", "--limit", "40", "--epsilon", "0.15", "--workers", "1", "--shard-size", "10")
    assert main(attack(mnist_folder, out, *flags)) == 0
    return out


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("--epsilon", "0.2"), "epsilon"),
        (("--limit", "41"), "limit"),
        (("--seed", "1"), "seed"),
        (("--target", "3"), "target"),
        (("--split", "train"), "split"),
        (("--shard-size", "11"), "shard_size"),
        (("--mean", "0.1", "--std", "0.3"), "model"),
        (("--cpus-per-worker", "2"), "threads"),
    ],
)
def test_another_start_is_refused(
    change: tuple[str, ...], field: str, small_run: Path, mnist_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--limit": "40", "--epsilon": "0.15"} | dict(zip(change[::2], change[1::2], strict=True))
    flags = [part for pair in given.items() for part in pair]
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}
    assert main(attack(mnist_folder, small_run, "fgsm", *flags)) == 2
    said = capsys.readouterr().err.strip()
    assert f"that run has {field} " in said
    assert "\n" not in said
    assert before == {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}


def test_a_finished_run_needs_no_ray(small_run: Path, mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.launch.open_session", lambda *address: pytest.fail("Ray was started"))
    assert main(attack(mnist_folder, small_run, "fgsm", "--limit", "40", "--epsilon", "0.15", "--workers", "2")) == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("adversarial_prediction", 4),
        ("adversarial_confidence", 0.123),
        ("clean_confidence", 0.5),
        ("l2", 9.0),
        ("l0", 3),
        ("label", 9),
        ("success", None),
        ("status", "already_wrong"),
        ("status", "skipped"),
        ("status", "certified"),
        ("status", "failed"),
        ("params_hash", "0123456789abcdef"),
        ("seed", 7),
        ("source_split", "train"),
        ("adversarial", None),
    ],
)
def test_verify_names_the_row_that_differs(
    column: str, value: Any, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    part = copy / "parts" / "part-000002.parquet"
    table = pq.read_table(part)
    changed = table[column].to_pylist()
    if column == "adversarial":
        changed[4] = [255 - level for level in changed[4]]
    else:
        changed[4] = not changed[4] if value is None else value
    index = table.column_names.index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(index, field, pa.array(changed, field.type)), part)
    assert main(["verify", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "differs: image 24: " in said
    assert main(["verify", str(small_run)]) == 0


def test_verify_refuses_another_model(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(CNN().state_dict(), tmp_path / "other.safetensors")
    other = ["--model", "workers.models.cnn:CNN", "--weights", str(tmp_path / "other.safetensors")]
    assert main(["verify", str(small_run), *other]) == 2
    assert "is not the one of this run" in capsys.readouterr().err


def test_verify_says_what_is_missing(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    part = copy / "parts" / "part-000001.parquet"
    for break_it in (lambda: part.write_bytes(b"PAR1 broken"), part.unlink):
        break_it()
        assert main(["verify", str(copy)]) == 1
        assert "30 rows agree, but 1 of 4 shards are not done" in capsys.readouterr().out
        assert main(["status", str(copy)]) == 0
        assert "stopped, resumable, 30 of 40 rows" in capsys.readouterr().out


def test_yaml_is_the_flags_and_flags_override(
    small_run: Path, mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"attack: fgsm\nmodel: {mnist_folder}\ndata: mnist\nlimit: 7\nepsilon: 15e-2\ncorrect: false\nworkers: 1\n"
        f"out: {tmp_path / 'from-yaml'}\n"
    )
    assert main(["attack", str(spec), "--limit", "40"]) == 0
    assert rows(tmp_path / "from-yaml") == rows(small_run)
    frozen = json.loads((tmp_path / "from-yaml" / "run.json").read_text())["frozen"]
    assert (frozen["limit"], frozen["parameters"]["epsilon"]) == (40, 0.15)
    assert "fgsm --epsilon 0.15 (38/255) untargeted: success" in capsys.readouterr().out


def test_targets_of_every_kind(mnist_folder: Path, tmp_path: Path) -> None:
    for goal in ("all", "random", "least-likely"):
        flags = ("fgsm", "--ids", "5,3,8", "--target", goal, "--workers", "1")
        assert main(attack(mnist_folder, tmp_path / goal, *flags)) == 0
    everything = rows(tmp_path / "all")
    assert len(everything) == 27
    assert all(row["target"] != row["label"] for row in everything)
    assert {row["image_id"] for row in everything} == {3, 5, 8}
    chosen = {row["image_id"]: row["target"] for row in rows(tmp_path / "random")}
    assert main(attack(mnist_folder, tmp_path / "one", "fgsm", "--ids", "8", "--target", "random")) == 0
    assert rows(tmp_path / "one")[0]["target"] == chosen[8]


def test_a_users_model_that_breaks_on_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fragile.py").write_text(
        "import torch\n"
        "class Fragile(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"  # else DE may now and then paint another image's corner white
        "        self.linear = torch.nn.Linear(48, 3)\n"
        "    def forward(self, x):\n"
        "        if (x[:, 0, 0, 0] == 1).any():\n"
        "            raise ValueError('cannot see white corners')\n"
        "        return self.linear(x.flatten(1))\n"
    )
    images = np.random.default_rng(0).integers(0, 200, (9, 3, 4, 4)).astype(np.uint8)
    images[6, 0, 0, 0] = 255
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(9) % 3)
    command = ["attack", "de", "--population", "8", "--generations", "2", "--model", "fragile:Fragile"]
    arguments = [*command, "--data", "images.npz", "--out", "run", "--shard-size", "4"]
    process = subprocess.run(
        [sys.executable, "-c", "from jobs.main import main; import sys; sys.exit(main(sys.argv[1:]))", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert process.returncode == 1, process.stderr
    found = rows(tmp_path / "run")
    assert [row["image_id"] for row in found if row["status"] == "failed"] == [6]
    assert "cannot see white corners" in found[6]["error"]
    assert "1 failed" in process.stdout


def test_exact_verdicts_leave_their_maps_beside_the_rows(mnist_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("one-pixel-exact", "--levels", "extremes", "--correct", "--limit", "9", "--shard-size", "2")
    assert main(attack(mnist_folder, out, *flags)) == 0
    found = rows(out)
    beside = pq.read_table(out / "by-products").to_pylist()
    assert [row["image_id"] for row in beside] == [row["image_id"] for row in found]
    assert all(row["queries"] == 784 * 2 for row in found)
    assert [row["successes"] > 0 for row in beside] == [row["success"] for row in found]
    assert [sum(row["map"]) for row in beside] == [row["successes"] for row in beside]
    assert main(["verify", str(out)]) == 0
