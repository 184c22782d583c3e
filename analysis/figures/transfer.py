"""Figures of a transfer: for each search how often images of one model fool another."""

import numpy as np

from analysis.exhibits import Drawing, Exhibit, key_of
from analysis.figures.heat import heat_map
from analysis.transfer import TransferReport, to_table

__all__ = ["transfer_exhibits"]

ITSELF = "itself"
"""The column of the sources that are no victims, on themselves."""


def transfer_exhibits(report: TransferReport) -> list[Exhibit]:
    """One exhibit: a matrix for each search; none without a cell that rests on an image."""
    victims = [victim.name for victim in report.victims]
    columns = [*victims, *([] if set(victims) >= set(report.sources) else [ITSELF])]
    drawings = []
    for attack in report.attacks:
        shares = np.full((len(report.sources), len(columns)), np.nan)
        own = []
        for row, source in enumerate(report.sources):
            for column, victim in enumerate(columns):
                if victim == ITSELF and source in victims:
                    continue
                cell = report.cell(source, source if victim == ITSELF else victim, attack)
                if cell is None or cell.rate.low is None:
                    continue
                shares[row, column] = cell.rate.low
                if cell.own:
                    own.append((row, column))
        if np.isnan(shares).all():
            continue
        figure = heat_map(
            shares, report.sources, columns, row_axis="source", column_axis="victim", outlined=own
        )  # fmt: skip
        caption = (
            f"{attack}: of the images that fool the source, those that fool the victim, in per cent; "
            "of all images where the source is itself the victim (outlined)."
        )
        drawings.append(Drawing(key_of("transfer", attack), caption, figure))
    if not drawings:
        return []
    said = "; ".join(
        f"{victim.name}: {victim.judgement.verdict}, images made on other models fool it within {report.threat} on "
        f"{victim.fooled}"
        for victim in report.victims
    )
    worst = report.worst
    most = "" if worst is None else f"; most transfers {worst.attack} of {worst.source} to {worst.victim}: {worst.rate}"
    notes = [f"All models classify the {report.attacked} images right as they are."]
    thin = sum(0 < cell.rate.total < 50 for cell in report.cells)
    if thin:
        notes.append(f"{thin} of {len(report.cells)} cells rest on fewer than 50 images: see their intervals.")
    return [Exhibit("transfer", "Whose images fool whom", f"{said}{most}.", drawings, to_table(report), notes)]
