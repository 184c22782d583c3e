"""The main job end to end on real MNIST, small; and the installed wheel in a stranger's folder."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.main import main
from workers.sources import fetch

ROOT = Path(__file__).parent.parent.parent


def test_the_main_job(
    tmp_path: Path, mnist_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training excepted, which is that of the model that the other tests have too; over a folder of files."""
    out = tmp_path / "experiment"
    shutil.copytree(mnist_folder, out / "model")
    data = ["--data", str(fetch("mnist"))]
    command = ["run", "--out", str(out), "--epochs", "2", "--sample", "12", "--population", "20", "--generations", "3"]
    command += ["--points", "200", *data]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"the page is {out / 'page.html'}" in said
    runs = sorted(path.name for path in (out / "runs").iterdir())
    assert len(runs) == 9
    ten = pq.read_table(out / "runs" / "ten-jsma" / "parts").to_pylist()
    assert {row["label"] for row in ten} == {2}
    assert {row["target"] for row in ten} == {6}
    assert len(ten) == 10
    for run in runs:
        assert main(["verify", str(out / "runs" / run)]) == 0

    def stamps() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for kept, suffix in (("runs", "parquet"), ("model", "safetensors"), ("analysis", "npz"))
            for path in (out / kept).rglob(f"*.{suffix}")
        }

    page = (out / "page.html").read_text()
    for part in ("claims that a number can decide", "by t-SNE", "by PCA", "through the layers", "From which class"):
        assert part in page, part
    claims = pq.read_table(out / "figures" / "claims.parquet").to_pylist()
    assert len(claims) == 10
    ten_jsma = f"{sum(row['success'] for row in ten)} of 10"
    assert [ten_jsma in claim["measured"] for claim in claims if claim["claim"].startswith("JSMA turns")] == [True]
    assert re.search(r"^mixed-jsma +[0-9.]+ s$", said, re.MULTILINE)
    before = stamps()
    monkeypatch.setattr("jobs.launch.open_session", lambda *address: pytest.fail("Ray was started"))
    assert main(command) == 0
    assert stamps() == before
    assert (out / "page.html").read_text() == page
    assert main(["run", "--out", str(out), "--epochs", "2", "--sample", "12", "--population", "30", *data]) == 2
    assert "that run has population 20" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_full_form(tmp_path: Path, mnist_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a detector that needs no training."""
    out = tmp_path / "experiment"
    shutil.copytree(mnist_folder, out / "model")
    small = ["--sample", "12", "--population", "20", "--generations", "3", "--points", "200", "--epochs", "2"]
    assert main(["run", "--full", "--out", str(out), *small, "--detector", "max-softmax"]) == 0
    assert len(list((out / "runs").iterdir())) == 13
    page = (out / "page.html").read_text()
    assert "max-softmax: broken" in page
    assert "Vulnerable pixels" in page
    assert "detector max-softmax" in capsys.readouterr().out
    assert (out / "detector" / "verdict.json").exists()


def test_the_wheel_works_beside_a_strangers_jobs(tmp_path: Path, mnist_folder: Path) -> None:
    source = tmp_path / "source"
    for name in ("analysis", "cluster", "jobs", "workers", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist", source],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = (tmp_path / "dist").glob("brittle-*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
        capture_output=True,
        timeout=300,
    )
    shipped = {path.name for path in site.iterdir()}
    assert {"workers", "cluster", "analysis", "jobs"} <= shipped
    assert "tests" not in shipped
    assert (site / "analysis" / "page" / "templates" / "page.css").exists()

    strange = tmp_path / "strange"
    for name in ("jobs", "workers"):
        (strange / name).mkdir(parents=True)
        (strange / name / "__init__.py").write_text("raise RuntimeError('a stranger was imported')\n")
    (strange / "mine.py").write_text("from workers.models.cnn import CNN\n\n\ndef net():\n    return CNN()\n")
    weights = next(mnist_folder.glob("*.safetensors"))
    program = (
        f"import sys; sys.path[0] = {str(site)!r}\n"  # what the console script does: its own folder, not the user's
        "from jobs.main import main\n"
        "import jobs; assert 'site' in jobs.__file__, jobs.__file__\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "attack", "fgsm", "--model", "mine:net", "--weights", str(weights)]
    done = subprocess.run(
        [*command, "--data", "mnist", "--limit", "8", "--out", "run", "--epsilon", "0.2"],
        cwd=strange,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(strange / "run" / "parts")
    assert table.num_rows == 8
    assert not any(table["error"].to_pylist())
