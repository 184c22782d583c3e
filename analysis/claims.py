"""What the original experiment says, and what the same experiment measures here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from analysis.exhibits import Exhibit
from analysis.statistics import Rate
from analysis.summary import Summary, summarise

if TYPE_CHECKING:
    from analysis.detection import DetectorReport

__all__ = ["Claim", "SeedRun", "claims", "claims_exhibit"]

ACCURACY = 0.987
"""The seed's network on MNIST's test images."""

FINDS = 0.99
"""The least share of adversarial images that the seed's detector is said to find."""


class SeedRun(StrEnum):
    """The runs that the claims are read from: on the ten images of one class, and on a mixed sample."""

    TEN_IFGSM = "ten-ifgsm"
    TEN_JSMA = "ten-jsma"
    TEN_ONE_PIXEL = "ten-one-pixel-de"
    TEN_EXACT = "ten-one-pixel-exact"
    TEN_FIVE_PIXELS = "ten-five-pixel-de"
    MIXED_IFGSM = "mixed-ifgsm"
    MIXED_JSMA = "mixed-jsma"


@dataclass(frozen=True)
class Claim:
    """One thing that the seed says.

    Attributes:
        says: in a few words.
        measured: what was measured, with intervals.
        holds: whether that bears it out; None where it says too little to be held against a number.
    """

    says: str
    measured: str
    holds: bool | None

    def __str__(self) -> str:
        verdict = {True: "holds", False: "does not hold", None: "measured"}[self.holds]
        return f"{self.says} – {verdict}: {self.measured}"


def claims(
    accuracy: Rate,
    runs: Mapping[str, pa.Table],
    inside: Mapping[str, Mapping[str, str]],
    report: "DetectorReport | None" = None,
) -> list[Claim]:
    """Holds the seed's claims against an experiment; one that nothing was measured of is left out.

    Args:
        accuracy: on clean test images.
        runs: rows of `SeedRun`, one an image; others are not read.
        inside: what `brittle analyze` found, by the keys of its exhibits and the names of runs.
        report: of the seed's detector, where it was judged.
    """
    found = {run: summarise(runs[run]) for run in SeedRun if run in runs}
    return [
        *_network(accuracy),
        *_gradients(found),
        *_costs(runs),
        *_few_pixels(found),
        *_representations(inside),
        *(_detector(report) if report else ()),
    ]


def claims_exhibit(held: Sequence[Claim], command: str) -> Exhibit:
    """The claims as a table."""
    judged = [claim.holds for claim in held if claim.holds is not None]
    return Exhibit(
        key="claims",
        title="What the seed says, and what was measured",
        finding=f"{sum(judged)} of the {len(judged)} claims that a number can decide hold.",
        table=pa.table(
            {
                "claim": [claim.says for claim in held],
                "holds": [{True: "yes", False: "no", None: "–"}[claim.holds] for claim in held],
                "measured": [claim.measured for claim in held],
            }
        ),
        notes=[
            "A rate is held against its 95% interval: high is above one half, a figure of the seed's is not reached "
            "where the interval ends below it.",
            "What is said to be possible needs one image; what is said to be impossible, an exact search.",
        ],
        command=command,
    )


def _network(accuracy: Rate) -> Iterator[Claim]:
    reaches = accuracy.interval is not None and accuracy.interval[1] >= ACCURACY
    yield Claim(f"The network reaches {ACCURACY:.1%} on test images", str(accuracy), reaches)


def _gradients(found: Mapping[SeedRun, Summary]) -> Iterator[Claim]:
    for attack, few, many in (
        ("Iterative FGSM", SeedRun.TEN_IFGSM, SeedRun.MIXED_IFGSM),
        ("JSMA", SeedRun.TEN_JSMA, SeedRun.MIXED_JSMA),
    ):
        if ten := found.get(few):
            mixed = found.get(many)
            beside = f"; of a mixed sample {mixed.success}" if mixed else ""
            interval = (mixed or ten).success.interval
            yield Claim(
                f"{attack} turns images into the target at a high rate, more than half",
                f"of the ten {ten.success}{beside}",
                interval is not None and interval[0] > 0.5,
            )


def _costs(runs: Mapping[str, pa.Table]) -> Iterator[Claim]:
    """JSMA beside iterative FGSM on the images that both turned."""
    if not {SeedRun.MIXED_IFGSM, SeedRun.MIXED_JSMA} <= runs.keys():
        return
    fgsm, jsma = (
        {row["image_id"]: row for row in runs[run].select(["image_id", "success", "l0", "queries"]).to_pylist()}
        for run in (SeedRun.MIXED_IFGSM, SeedRun.MIXED_JSMA)
    )
    both = [image for image in fgsm.keys() & jsma.keys() if fgsm[image]["success"] and jsma[image]["success"]]
    if not both:
        return
    for says, column, what, more in (
        ("JSMA changes fewer pixels than FGSM", "l0", "fewer pixels", False),
        ("JSMA computes more than FGSM", "queries", "more images through the network", True),
    ):
        further = [(jsma[i][column] - fgsm[i][column]) * (1 if more else -1) for i in both]
        bears = Rate(sum(by > 0 for by in further), len(both))
        medians = [np.median([rows[image][column] for image in both]) for rows in (jsma, fgsm)]
        yield Claim(
            says,
            f"{what} on {bears} of the images that both turn; medians {medians[0]:.0f} and {medians[1]:.0f}",
            bears.interval is not None and bears.interval[0] > 0.5,
        )


def _few_pixels(found: Mapping[SeedRun, Summary]) -> Iterator[Claim]:
    one, exact = found.get(SeedRun.TEN_ONE_PIXEL), found.get(SeedRun.TEN_EXACT)
    if one:
        says, told = "One pixel is not enough on any of the ten", f"differential evolution {one.success}"
        if exact:
            whole = not exact.success.unknown  # a search that failed may have found one
            holds = False if exact.success.hits else whole or None
            yield Claim(says, f"{told}; a search of all single changes {exact.success}", holds)
        else:  # that one search finds nothing proves nothing
            yield Claim(says, told, False if one.success.hits else None)
    if five := found.get(SeedRun.TEN_FIVE_PIXELS):
        yield Claim(
            "Five pixels can be enough", f"differential evolution {five.success}", bool(five.success.hits) or None
        )


def _representations(inside: Mapping[str, Mapping[str, str]]) -> Iterator[Claim]:
    for says, key, runs in (
        ("Adversarial images jump into the target's cluster", "neighbours", (SeedRun.MIXED_IFGSM, SeedRun.MIXED_JSMA)),
        ("A change explodes through the layers", "activation-change", (SeedRun.MIXED_IFGSM,)),
        (
            "and tapers off in some failed attacks",
            "activation-change",
            (SeedRun.TEN_ONE_PIXEL, SeedRun.TEN_FIVE_PIXELS),
        ),
    ):
        found = {run: finding for run in runs if (finding := inside.get(key, {}).get(run))}
        if found:
            yield Claim(says, " ".join(f"{run}: {finding}" for run, finding in found.items()), None)


def _detector(report: "DetectorReport") -> Iterator[Claim]:
    if seed := report.seed:
        yield Claim(
            "The network is right on 9.5% of adversarial images and on 21.8% of their reconstructions",
            f"on {seed.adversarial} and {seed.adversarial_reconstructed}",
            None,
        )
        finds = seed.flagged.interval is not None and seed.flagged.interval[1] >= FINDS
        spares = seed.clean_flagged.interval is not None and seed.clean_flagged.interval[0] <= 1 - FINDS
        yield Claim(
            f"A threshold of {seed.at:g} finds 99 to 100% of adversarial images and no clean ones",
            f"{seed.flagged} of iterative FGSM's and {seed.clean_flagged} of the clean images",
            finds and spares,
        )
    yield Claim(
        "Autoencoders can be used against adversarial inputs",
        f"under attacks that know the detector: {report.judgement.verdict}; {'; '.join(report.judgement.reasons)}",
        None,
    )
