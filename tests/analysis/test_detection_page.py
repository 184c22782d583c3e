"""The page of detectors: self-contained, escaped, its numbers the report's, its pictures the examples'."""

import base64
import io
import re
from dataclasses import replace
from functools import cache
from html import unescape

import numpy as np
from PIL import Image

from analysis.detection import (
    RATES,
    Check,
    DetectorReport,
    Example,
    Kind,
    SeedNumbers,
    ShiftRow,
    calibrate,
    cell,
    false_alarms,
    headline,
    judge_detector,
    over_seeds,
)
from analysis.page import render_detection
from analysis.statistics import Rate
from tests.analysis.detector_cases import rows
from tests.conftest import random_images
from workers.threat import Ball, Pixels

NAME = "<script>alert('name')</script>"


@cache
def a_report(name: str = NAME) -> DetectorReport:
    rng = np.random.default_rng(4)
    calibration, clean = rng.gamma(2, 0.1, 5000), rng.gamma(2, 0.1, 3000)
    right = rng.random(3000) < 0.98
    naive = rows("<b>cw</b>", score=rng.gamma(4, 0.12, 300), fooled=rng.random(300) < 0.9)
    adaptive = rows("joint", kind=Kind.ADAPTIVE, score=rng.gamma(2, 0.1, 300), fooled=rng.random(300) < 0.95)
    few = rows("beam", kind=Kind.FEW_PIXEL, score=rng.gamma(2, 0.2, 40), fooled=rng.random(40) < 0.8)
    thresholds = [calibrate(calibration, rate) for rate in RATES]
    attacks, threat = (naive, adaptive, few), Ball("l2", 2.5)
    headlines = tuple(headline(attacks, threat, threshold) for threshold in thresholds)
    checks = (Check("steps suffice", True, "50 % & 51 %"), Check("gradients present", False, "<i>none</i>"))
    images = random_images((1, 14, 12), 6, 3)
    return DetectorReport(
        name=name,
        paper="A & B, 2017",
        judgement=judge_detector(headlines[0], thresholds[0], checks, adaptive=True).because("<u>reason</u>"),
        alarms=tuple(false_alarms(threshold, clean, right) for threshold in thresholds),
        cells=tuple(cell(attack, calibration, clean[right]) for attack in attacks),
        headlines=headlines,
        checks=checks,
        shifts=(
            ShiftRow("sign noise", "±0.3", (Rate(997, 1000), Rate(951, 1000)), Rate(123, 1000)),
            ShiftRow("<em>fashion</em>", "", (Rate(640, 1000), Rate(430, 1000)), None),
        ),
        scores={"clean": clean, "<b>cw</b>": naive.score, "joint": np.append(adaptive.score, np.nan)},
        seed=SeedNumbers(Rate(95, 1000), Rate(218, 1000), Rate(901, 1000), Rate(996, 1000), Rate(7, 1000)),
        examples=(
            Example("<b>cw</b>", 17, 3, 5, 0.123, 0.456, images[0], images[1], images[2]),
            Example("joint", 23, 3, 8, 0.111, 0.222, images[3], images[4]),
        ),
    )


def test_several_trainings_are_shown_together() -> None:
    report = a_report()
    other = replace(report, headlines=(replace(report.headlines[0], evaded=Rate(30, 300)), report.headlines[1]))
    found = over_seeds("vae-kl", [report, other])
    first = report.headlines[0].evaded.value
    assert first is not None
    assert first > 0.1
    assert found.evaded is not None
    assert (found.evaded.low, found.evaded.high) == (0.1, first)
    assert found.evaded.mean == (first + 0.1) / 2
    assert found.auroc is not None
    solid = [cell.auroc.value for cell in report.cells if cell.auroc and not cell.grey]
    assert found.auroc.low == found.auroc.high == min(solid)
    html = render_detection([report, other], trainings=[found])
    assert "Over several trainings" in html
    assert f"10.0% to {first:.1%}" in html
    assert "Over several trainings" not in render_detection(report)


def test_it_needs_nothing_else_and_escapes_what_it_is_given() -> None:
    html = render_detection(a_report(), model="<h1>net</h1>", data="<h1>mnist</h1>")
    for raw in ("<script", "<b>cw", "<i>none", "<u>", "<em>", "<h1>net", "<h1>mnist"):
        assert raw not in html, raw
    assert "&lt;script&gt;" in html
    assert not re.search(r"""(src|href)=["'](https?:)?//""", html)
    assert "http://" not in html.replace("http-equiv", "")
    assert "https://" not in html
    assert "default-src 'none'" in html


def test_its_numbers_are_those_of_the_report() -> None:
    report = a_report()
    html = unescape(render_detection(report, model="net", data="mnist"))

    def shown(share: float | None) -> str:
        assert share is not None
        return f"{share:.1%}"

    said = [*report.judgement.reasons, *(check.sentence for check in report.checks)]
    for sentence in said:
        assert sentence in html
    for found in report.cells:
        assert shown(found.success.value) in html
        assert f"{found.l2:.2f}" in html
        for area in (found.auroc, found.aupr):
            assert area is not None
            low, high = area.interval
            assert f"{area.value:.3f}<br><small>{low:.3f}–{high:.3f}" in html
        for at in found.at:
            assert at.tpr is not None
            for share in (at.tpr.value, *at.tpr.interval, at.evaded.value, at.failed.value):
                assert shown(share).removesuffix(" %") in html
    for head in report.headlines:
        for rate in (head.evaded, head.clean_accepted, head.detected_or_correct):
            assert f"{rate.hits:,} of {rate.total:,}" in html
    for alarm in report.alarms:
        assert f"τ = {alarm.threshold.value:.4g}" in html
        assert shown(alarm.all.value) in html
    for number in ("99.7%", "95.1%", "12.3%", "64.0%", "9.5%", "21.8%", "90.1%", "99.6%", "0.7%"):
        assert number in html, number
    assert html.count('class="grey"') == 1
    assert "0.123" in html
    assert "0.456" in html


def test_its_pictures_are_the_examples() -> None:
    report = a_report()
    html = render_detection(report)
    found = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert found
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB"))
    first, second = report.examples
    assert first.reconstruction is not None
    for number, image in enumerate((first.clean, first.adversarial, first.reconstruction, second.clean)):
        assert np.array_equal(sheet[:14, 12 * number : 12 * (number + 1), 0], image[0])
    assert html.count('role="img" aria-label="reconstruction"') == 1


def test_a_detector_of_which_little_is_known() -> None:
    broken = calibrate(np.full(100, np.nan), 0.05)
    worst = headline([rows(score=[0.0], fooled=[True])], Pixels(5), broken)
    report = DetectorReport(
        "constant",
        "",
        judge_detector(worst, broken, [], adaptive=True),
        (false_alarms(broken, np.zeros(9), np.ones(9, bool)),),
        (),
        (),
    )
    html = render_detection([report, a_report("second")])
    assert "evaluation invalid" in html
    assert "100 of 100 calibration scores are not finite" in html
    assert html.index('href="#detector-1"') < html.index('href="#detector-2"') < html.index('id="detector-1"')
