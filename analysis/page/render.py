"""Runs in, HTML out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.page.environment import templates
from analysis.page.sprites import Sheet, change_picture, picture
from analysis.replay import stored_images
from analysis.statistics import Rate
from analysis.summary import Summary, summarise
from workers.attacks.attack import Attack
from workers.images import Dataset
from workers.models.loading import ModelRecipe
from workers.places import Place
from workers.results import Status

__all__ = ["RunView", "render"]

GALLERY = 10
"""Images shown a run: successes first, then exhausted searches."""


@dataclass(frozen=True)
class RunView:
    """A run as the page needs it.

    Attributes:
        place: its folder.
        attack: the method with its parameters.
        target: as the user gave it, None when untargeted.
        planned: rows in the plan.
        table: the rows that are done.
        checks: what was found out about the model and did not pass, a sentence each.
    """

    place: Place
    attack: Attack
    target: str | None
    planned: int
    table: pa.Table
    checks: Sequence[str] = ()

    @property
    def title(self) -> str:
        """The attack and its goal, for example ``jsma → 6``."""
        return f"{self.attack.title} → {self.target}" if self.target is not None else f"{self.attack.title}, untargeted"

    @property
    def parameters(self) -> str:
        """Every parameter that is set, as flags."""
        return " ".join(_flag(name.replace("_", "-"), value) for name, value in self.attack.model_dump().items())


@dataclass(frozen=True)
class Card:
    """One image of the gallery: where its three thumbnails are, and what the model said."""

    row: dict[str, Any]
    first_sprite: int


def render(
    runs: Sequence[RunView],
    recipe: ModelRecipe,
    dataset: Dataset,
    correct: np.ndarray,
    *,
    findings: Sequence[str] = (),
) -> str:
    """Renders the page.

    Args:
        runs: the runs, in the order they are shown.
        recipe: the model, for its name and hash.
        dataset: the images.
        correct: bool ``[N]``, which images of the data set the model classifies correctly.
        findings: what the runs come to together, a sentence each, shown first; the first of them as a heading.

    Returns:
        HTML that needs no network.
    """
    pictures: list[np.ndarray] = []
    sections = []
    for run in runs:
        cards = _cards(run, dataset, pictures)
        sections.append({"run": run, "summary": summarise(run.table), "cards": cards})
    environment = templates()
    environment.filters["count"] = _count
    return environment.get_template("page.html.j2").render(
        sections=sections,
        findings=findings,
        sheet=Sheet.of(pictures) if pictures else None,
        accuracy=Rate(int(correct.sum()), len(correct)),
        model=Path(recipe.reference).name,
        model_hash=recipe.content_hash[:12],
        dataset=dataset,
        data=Path(dataset.name).name,
        shape="×".join(map(str, dataset.shape)),
        Status=Status,
    )


def _cards(run: RunView, dataset: Dataset, pictures: list[np.ndarray]) -> list[Card]:
    order = {Status.SUCCESS: 0, Status.CERTIFIED: 1, Status.EXHAUSTED: 1}
    status = run.table["status"].cast(pa.string()).to_pylist()
    shown = sorted((order[Status(s)], row) for row, s in enumerate(status) if s in order)[:GALLERY]
    if not shown:
        return []
    rows = run.table.take([row for _, row in shown])
    found, cards = stored_images(rows), []
    for number, row in enumerate(rows.drop_columns(["adversarial"]).to_pylist()):
        clean = dataset.images[row["image_id"]]
        cards.append(Card(row, len(pictures)))
        pictures += [picture(clean), change_picture(clean, found[number]), picture(found[number])]
    return cards


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return "" if value is None else f"--{name} {value}"


def _count(summary: Summary, status: Status) -> int:
    return summary.counts.get(status, 0)
