"""``brittle data``: fetch, verify and cache a named data set."""

import sys

from cyclopts import App

from jobs.examples import examples
from jobs.progress import say
from workers.errors import WrongInput
from workers.sources import NAMES, load_data

__all__ = ["app"]

app = App(
    name="data",
    help="""Fetch, verify and cache a named data set: mnist, fashion-mnist or digits.

    Sources are tried in turn and every file's SHA-256 is checked. The cache is the user's own, or
    $BRITTLE_CACHE.
    """,
    help_epilogue=examples(
        "brittle data mnist",
    ),
)


@app.default
def data(name: str) -> int:
    """
    Args:
        name: mnist, fashion-mnist or digits.
    """
    if name not in NAMES:
        raise WrongInput(f"unknown data set {name}: expected one of {', '.join(NAMES)}")
    for split in ("train", "test"):
        dataset = load_data(name, split, say=say)
        shape = "×".join(map(str, dataset.shape))
        print(f"{name} {split}: {len(dataset)} images of {shape}, {dataset.classes} classes")
    return 0


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["data", *sys.argv[1:]]))
