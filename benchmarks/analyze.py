"""What `brittle analyze` takes: seconds of each part at several sizes of the map, and of a second start.

    python benchmarks/analyze.py RUN… --out FOLDER [--points 10000 60000]

Each line is a command of its own, in a process of its own; FOLDER must be new, else what it keeps would be found there.
"Whole" is the process from its start to its end, CPU its user and system time with all threads. A map's share of
neighbours that it keeps is its note on the page.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def measured(runs: list[str], points: int, out: Path) -> tuple[float, float, dict[str, dict[str, float]], str]:
    """Runs the command; returns wall and CPU seconds, those of each part, and what t-SNE keeps of neighbours."""
    command = [sys.executable, "-m", "jobs.main", "analyze", *runs, "--points", str(points), "--out", str(out)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = json.loads((out / "analysis.json").read_text())
    return wall, cpu, said["seconds"], said["notes"]["tsne-map"][0].split(" of a ")[0].removeprefix("The map keeps ")


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 60_000])
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"--out {given.out}: exists; expected a new folder")
    load = "/".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load}, openTSNE {version('openTSNE')}, "
          f"{len(given.runs)} runs, {time.strftime('%Y-%m-%d')}")  # fmt: skip
    columns = []
    for points in given.points:
        for start in ("first", "second"):
            columns.append((f"{points:,} {start}", measured(given.runs, points, given.out / str(points))))
    parts = list(dict.fromkeys(part for _, (_, _, seconds, _) in columns for part in seconds))
    width = max(map(len, [*parts, "t-SNE keeps of neighbours"]))
    print(f"{'seconds: wall (CPU)':<{width}}", *(f"{name:>15}" for name, _ in columns))
    for part in parts:
        each = [seconds.get(part) for _, (_, _, seconds, _) in columns]
        told = [f"{one['wall']:.1f} ({one['cpu']:.1f})" if one else "–" for one in each]
        print(f"{part:<{width}}", *(f"{text:>15}" for text in told))
    print(f"{'whole':<{width}}", *(f"{f'{wall:.1f} ({cpu:.1f})':>15}" for _, (wall, cpu, _, _) in columns))
    for name, (_, _, _, kept) in columns[::2]:
        print(f"t-SNE of {name.split()[0]} keeps {kept} of the nearest neighbours")
    return 0


if __name__ == "__main__":
    sys.exit(main())
