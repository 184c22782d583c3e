"""Pages of real rows for the tests that read them as text and in a browser."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import nn

from analysis.exhibits import Drawing, Exhibit, key_of, row_key
from analysis.figures.style import BAD, GOOD, new_figure, styled
from analysis.run_view import RunView
from workers.attacks import FGSM, JSMA, Attack
from workers.images import Dataset
from workers.places import Place


def views_on(model: nn.Module, dataset: Dataset, searches: Sequence[tuple[str, Attack, int | None]]) -> list[RunView]:
    """Each search of all images, in a run of its own: its folder's name, the attack, the target."""
    views = []
    for name, attack, target in searches:
        table = attack(model, dataset.images, dataset.labels, targets=target).to_table()
        views.append(
            RunView(
                Place("runs") / name,
                name,
                key_of(name),
                attack,
                None if target is None else str(target),
                len(table),
                table,
                command=f"brittle attack {attack.NAME} --out runs/{name}",
                command_of_row=f"brittle attack {attack.NAME} --model net --data 'a b.npz'",
            )
        )
    return views


def thousand_rows(model: nn.Module, mnist: Dataset) -> tuple[list[RunView], Dataset]:
    """1,000 real images, attacked: 960 by FGSM at two ε, 40 by JSMA."""
    first, few = (Dataset(mnist.images[:n], mnist.labels[:n], mnist.split, mnist.name) for n in (480, 40))
    views = views_on(model, first, [("fgsm-1", FGSM(epsilon=0.1), None), ("fgsm-2", FGSM(epsilon=0.2), None)])
    return views + views_on(model, few, [("jsma", JSMA(), 6)]), mnist


def distances_exhibit(views: Sequence[RunView]) -> Exhibit:
    """L2 change against confidence, a mark a row, and the table behind it."""
    names = ["image_id", "target", "params_hash", "success", "l2", "adversarial_confidence"]
    rows = [(view.name, row) for view in views for row in view.table.select(names).to_pylist()]
    with styled():
        figure, keys = new_figure(), {}
        axes = figure.add_subplot()
        for reached, colour in ((True, BAD), (False, GOOD)):
            shown = [(run, row) for run, row in rows if row["success"] is reached and row["l2"] is not None]
            marks = axes.scatter(
                [row["l2"] for _, row in shown], [row["adversarial_confidence"] for _, row in shown], s=12, color=colour
            )
            marks.set_gid(f"rows-{reached}")
            keys[f"rows-{reached}"] = [row_key(run, row) for run, row in shown]
        axes.set_xlabel("L2 change")
        axes.set_ylabel("confidence of the prediction")
    moved = np.array([row["l2"] for _, row in rows if row["l2"] is not None])
    return Exhibit(
        "distances",
        "How far images move",
        f"Half of them move at most {np.median(moved):.2f} in L2.",
        [Drawing("distances-confidence", "Confidence against the L2 change, a mark an image.", figure, keys)],
        pa.table({"run": [run for run, _ in rows], "L2": [row["l2"] for _, row in rows]}),
        ["A failed search keeps the last image that it had."],
        "brittle report runs/jsma --out page.html",
    )
