"""What the original experiment says, and what the same experiment measures here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from analysis.exhibits import Exhibit
from analysis.statistics import Rate
from analysis.summary import Summary, summarise

if TYPE_CHECKING:
    from analysis.detection import DetectorReport

__all__ = ["Claim", "claims", "claims_exhibit"]

ACCURACY = 0.987
"""The seed's network on MNIST's test images."""

FINDS = 0.99
"""The least share of adversarial images that the seed's detector is said to find."""


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
        runs: rows by the names that `brittle run` gives its runs.
        inside: what `brittle analyze` found, by the keys of its exhibits and the names of runs.
        report: of the seed's detector, where it was judged.
    """
    found = {name: summarise(table) for name, table in runs.items()}
    return [
        *_network(accuracy),
        *_gradients(found),
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
        notes=["A rate bears a claim out where its 95 % interval does; images are those that brittle run draws."],
        command=command,
    )


def _network(accuracy: Rate) -> Iterator[Claim]:
    reaches = accuracy.interval is not None and accuracy.interval[1] >= ACCURACY
    yield Claim(f"The network reaches {ACCURACY:.1%} on test images", str(accuracy), reaches)


def _gradients(found: Mapping[str, Summary]) -> Iterator[Claim]:
    for attack, name in (("Iterative FGSM", "ifgsm"), ("JSMA", "jsma")):
        if ten := found.get(f"ten-{name}"):
            mixed = found.get(f"mixed-{name}")
            beside = f"; of a mixed sample {mixed.success}" if mixed else ""
            interval = (mixed or ten).success.interval
            yield Claim(
                f"{attack} turns images into the target at a high rate",
                f"of the ten {ten.success}{beside}",
                interval is not None and interval[0] > 0.5,
            )
    fgsm, jsma = found.get("mixed-ifgsm"), found.get("mixed-jsma")
    if fgsm and jsma and fgsm.l0 is not None and jsma.l0 is not None:
        yield Claim(
            "JSMA changes fewer pixels than FGSM",
            f"medians of {jsma.l0:.0f} and {fgsm.l0:.0f} pixels over the successes",
            jsma.l0 < fgsm.l0,
        )
    if fgsm and jsma and fgsm.queries and jsma.queries:
        yield Claim(
            "JSMA computes more than FGSM",
            f"medians of {jsma.queries:.0f} and {fgsm.queries:.0f} images through the network",
            jsma.queries > fgsm.queries,
        )


def _few_pixels(found: Mapping[str, Summary]) -> Iterator[Claim]:
    one, five = found.get("ten-one-pixel-de"), found.get("ten-five-pixel-de")
    exact = found.get("mixed-one-pixel-exact")
    if one:
        beside = f"; a search of all single changes, of a mixed sample {exact.success}" if exact else ""
        yield Claim("One pixel is not enough", f"differential evolution {one.success}{beside}", not one.success.hits)
    if five:
        yield Claim("Five pixels can be enough", f"differential evolution {five.success}", five.success.hits > 0)


def _representations(inside: Mapping[str, Mapping[str, str]]) -> Iterator[Claim]:
    for says, key, runs in (
        ("Adversarial images jump into the target's cluster", "neighbours", ("mixed-ifgsm", "mixed-jsma")),
        ("A change explodes through the layers", "activation-change", ("mixed-ifgsm",)),
        ("and tapers off in some failed attacks", "activation-change", ("ten-one-pixel-de", "ten-five-pixel-de")),
    ):
        found = {run: finding for run in runs if (finding := inside.get(key, {}).get(run))}
        if found:
            yield Claim(says, " ".join(f"{run}: {finding}" for run, finding in found.items()), None)


def _detector(report: "DetectorReport") -> Iterator[Claim]:
    if seed := report.seed:
        yield Claim(
            "The network is right on 9.5 % of adversarial images and on 21.8 % of their reconstructions",
            f"on {seed.adversarial} and {seed.adversarial_reconstructed}",
            None,
        )
        finds = seed.flagged.value is not None and seed.flagged.value >= FINDS
        alarms = seed.clean_flagged.value or 0.0
        yield Claim(
            f"A threshold of {seed.at:g} finds 99 to 100 % of adversarial images and no clean ones",
            f"{seed.flagged} of iterative FGSM's and {seed.clean_flagged} of the clean images",
            finds and alarms <= 1 - FINDS,
        )
    yield Claim(
        "Autoencoders can be used against adversarial inputs",
        f"under attacks that know the detector: {report.judgement.verdict}; {'; '.join(report.judgement.reasons)}",
        None,
    )
