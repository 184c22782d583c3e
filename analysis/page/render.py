"""Runs in, HTML out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from analysis.exhibits import Exhibit
from analysis.page.environment import data_table, embedded, render_page, script, templates
from analysis.page.exhibits import exhibit_views
from analysis.page.listing import FIELDS, Listing
from analysis.run_view import RunView
from analysis.statistics import Rate
from analysis.summary import Summary, summarise
from workers.images import Dataset
from workers.models.loading import ModelRecipe
from workers.results import Status

__all__ = ["render"]


def render(
    runs: Sequence[RunView],
    recipe: ModelRecipe,
    dataset: Dataset,
    accuracy: Rate,
    *,
    findings: Sequence[str] = (),
    exhibits: Sequence[Exhibit] = (),
    command: str = "",
) -> str:
    """Renders the page.

    Args:
        runs: the runs, in the order they are shown.
        recipe: the model, for its name and hash.
        dataset: the images.
        accuracy: of the model on images of the data set, unchanged.
        findings: what the runs come to together, a sentence each, shown first; the first of them as a heading.
        exhibits: what supports them, in the order shown; marks of their figures open the rows that they stand for.
        command: what makes the page, as typed.

    Returns:
        HTML that needs no network.

    Raises:
        ValueError: when two exhibits or figures share a key, or a figure has not a mark for each of its rows.
    """
    listing = Listing.of(runs, dataset)
    sections = [
        {"run": run, "summary": summarise(run.table), "cards": cards}
        for run, cards in zip(runs, listing.cards, strict=True)
    ]
    shown = exhibit_views(exhibits, numbers=listing.numbers, command=command)
    environment = templates()
    environment.filters["count"] = _count
    return render_page(
        environment,
        "page.html.j2",
        scripts=[data_table(), script("exhibits.js"), script("images.js")],
        sections=sections,
        findings=findings,
        exhibits=shown,
        contents=[
            *([("findings", "Findings")] if findings else []),
            ("attacks", "Attacks"),
            *((view.anchor, view.exhibit.title) for view in shown),
            ("images", "Images"),
        ],
        listing=listing,
        data=embedded(
            {
                "runs": [
                    {"title": title, "name": run.name, "again": run.command_of_row}
                    for run, title in zip(runs, _titles(runs), strict=True)
                ],
                "fields": ["run", *FIELDS, "clean", "change", "adversarial"],
                "rows": listing.rows,
                "sheets": {name: [sheet.columns, sheet.rows] for name, sheet in listing.sheets.items()},
            }
        ),
        sheets=listing.sheets,
        staged=any(run.left for run in runs),
        carried=_several(runs, carries=True),
        apart=_several(runs, carries=False),
        accuracy=accuracy,
        model=Path(recipe.reference).name,
        model_hash=recipe.content_hash[:12],
        dataset=dataset,
        dataset_name=Path(dataset.name).name,
        shape="×".join(map(str, dataset.shape)),
        command=command,
        Status=Status,
    )


def _several(runs: Sequence[RunView], *, carries: bool) -> list[str]:
    """Names of the runs at several budgets whose attack keeps, or does not keep, what a smaller budget found."""
    count = Counter(run.name for run in runs)
    return list(dict.fromkeys(run.name for run in runs if count[run.name] > 1 and carries == run.attack.CARRIES))


def _titles(runs: Sequence[RunView]) -> list[str]:
    """What tells the runs apart: their title, with their name where others have the same."""
    seen = Counter(run.title for run in runs)
    return [run.title if seen[run.title] == 1 else f"{run.title} ({run.name})" for run in runs]


def _count(summary: Summary, status: Status) -> int:
    return summary.counts.get(status, 0)
