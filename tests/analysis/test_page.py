"""The page: self-contained, its numbers those of the rows, its pictures those of the images."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from analysis.exhibits import key_of, row_key
from analysis.page import render
from analysis.page.listing import FIELDS, Listing, fair_shares
from analysis.run_view import RunView
from analysis.sprites import CHANGES, Sheet, change_picture, picture, reduced
from analysis.statistics import Rate
from analysis.summary import clean_accuracy
from tests.analysis.page_cases import thousand_rows
from tests.conftest import ColourNet, random_images
from tests.workers.test_fgsm import predictions
from workers.attacks import FGSM, JSMA
from workers.images import Dataset
from workers.models.loading import read_model
from workers.places import Place

NASTY = "brittle attack --model '</script><!--<script>\"' --x=&amp;"


def a_page(*, views: Sequence[RunView] = (), **more: Any) -> tuple[str, Dataset, list[RunView]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(71)
        recipe = read_model("tests.workers.test_loading:seeded_net")
    model = recipe.build()
    images = random_images(ColourNet.SHAPE, 30, 70)
    labels = predictions(model, images)
    labels[:3] = (labels[:3] + 1) % 7
    dataset = Dataset.checked(images, labels, split="all", name="<script>alert(1)</script>.npz")
    views = list(views)
    for attack, target in ((FGSM(epsilon=0.2), None), (JSMA(), 2)):
        table = attack(model, images, labels, targets=target).to_table()
        place = Place("runs") / f"{attack.NAME}</script><b>'\""
        goal = None if target is None else "2"
        views.append(
            RunView(
                place,
                place.name,
                key_of(place.name),
                attack,
                goal,
                30,
                table,
                ["<i>slow"],
                command=NASTY,
                command_of_row=NASTY,
            )
        )
    return render(views, recipe, dataset, clean_accuracy(predictions(model, images), labels), **more), dataset, views


class Seen(HTMLParser):
    """The elements of a page, the text of its scripts and what it shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given() -> None:
    findings = ["<script>alert(2)</script>", 'a < b & "c"']
    html, dataset, views = a_page(findings=findings, command=NASTY)
    page = Seen(html)
    for given in (Path(dataset.name).name, *findings, NASTY, views[0].name, "<i>slow"):
        assert given in page.text, given
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert kinds == ["application/json", None, None, None]
    data = json.loads(page.scripts[0])
    assert data["runs"][0]["name"] == views[0].name
    assert data["runs"][0]["again"] == NASTY
    assert "alert" not in page.scripts[0]
    for tag, attributes in page.tags:
        assert tag not in ("i", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "xlink:href"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:")), attributes
        assert not [name for name in attributes if name.startswith("on")]


def test_its_policy_lets_its_own_scripts_run_and_nothing_else() -> None:
    page = Seen(a_page()[0])
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for script in page.scripts:  # neither ends the element that it stands in, nor hides its end
        assert not re.search("<!--|</?script", script, re.IGNORECASE)


def test_every_row_is_listed_with_its_key() -> None:
    html, dataset, views = a_page()
    data = json.loads(Seen(html).scripts[0])
    listed = [dict(zip(data["fields"], row, strict=True)) for row in data["rows"]]
    truth = [(number, row) for number, view in enumerate(views) for row in view.table.to_pylist()]
    assert len(listed) == len(truth) == 60
    for shown, (run, row) in zip(listed, truth, strict=True):
        assert shown["run"] == run
        for name in ("image_id", "label", "target", "status", "adversarial_prediction", "l0", "queries", "worker"):
            assert shown[name] == row[name]
        assert shown["l2"] == pytest.approx(row["l2"], rel=1e-5)
    listing = Listing.of(views, dataset)
    assert [listing.numbers[row_key(views[run].name, row)] for run, row in truth] == list(range(60))


def test_what_a_page_cannot_hold_is_dealt_out_fairly_and_said() -> None:
    _, dataset, views = a_page()
    listing = Listing.of(views, dataset, listed=45, pictured=12)
    assert [row[0] for row in listing.rows] == [0] * 22 + [1] * 23
    pictured = [row for row in listing.rows if row[-3] is not None]
    assert [row[0] for row in pictured] == [0] * 6 + [1] * 6
    status = FIELDS.index("status") + 1
    successes = sum(row[status] == "success" for row in listing.rows if row[0] == 0)
    assert sum(row[status] == "success" for row in pictured[:6]) == min(6, successes)
    assert len(listing.notes) == 2
    assert "45 of 60" in listing.notes[0]
    assert Listing.of(views, dataset).notes == []


@pytest.mark.parametrize("counts", [[], [5], [0, 9, 3], [100, 1, 40, 40]])
def test_fair_shares(counts: list[int]) -> None:
    for total in range(sum(counts) + 3):
        shares = [0] * len(counts)
        for _ in range(min(total, sum(counts))):  # one by one to who has least of those that want more
            wanting = [i for i, count in enumerate(counts) if shares[i] < count]
            shares[min(wanting, key=lambda i: shares[i])] += 1
        found = fair_shares(counts, total)
        assert sorted(found) == sorted(shares)
        assert all(share <= count for share, count in zip(found, counts, strict=True))


def test_large_images_are_shown_smaller() -> None:
    rng = np.random.default_rng(5)
    image, change = rng.integers(0, 256, (2, 11, 13), dtype=np.uint8)
    small, strongest = reduced(image, 4), reduced(change, 4, change=True)
    assert small.shape == strongest.shape == (3, 4)
    for y in range(3):
        for x in range(4):
            block = np.s_[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            assert abs(int(small[y, x]) - image[block].mean()) <= 1
            assert abs(int(strongest[y, x]) - 127) == np.abs(change[block].astype(int) - 127).max()
    assert reduced(image, 1) is image


def test_a_thousand_real_images_are_a_small_page(mnist: Dataset, mnist_model: nn.Module, mnist_folder: Path) -> None:
    views, dataset = thousand_rows(mnist_model, mnist)
    html = render(views, read_model(str(mnist_folder)), dataset, Rate(len(mnist), len(mnist)))
    assert sum(row[-3] is not None for row in Listing.of(views, dataset).rows) == 1000
    assert len(html.encode()) < 4_000_000


def test_pictures_never_outgrow_the_page() -> None:
    """What no PNG makes smaller, noise in colour, of more pixels than a page holds."""
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (40, 3, 600, 300), dtype=np.uint8)
    dataset = Dataset(images, np.zeros(40, dtype=np.int64), "all", "noise")
    columns = {name: [None] * 40 for name in (*FIELDS, "params_hash")} | {
        "image_id": list(range(40)), "status": ["success"] * 40, "params_hash": ["f" * 16] * 40,
    }  # fmt: skip
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images[::-1].reshape(-1)), images[0].size)
    table = pa.table(columns | {"adversarial": flat, "shape": [[3, 600, 300]] * 40})
    listing = Listing.of([RunView(Place("runs/noise"), "noise", "noise", FGSM(epsilon=0.1), None, 40, table)], dataset)
    assert sum(len(sheet.uri) for sheet in listing.sheets.values()) < 14_000_000
    assert listing.sheets["image"].height * 3 == 600
    assert "a 3th" not in listing.notes[0]


def test_its_numbers_are_the_rows() -> None:
    html, _, views = a_page()
    assert "90.0%" in html  # 27 of 30 clean images are right
    shown = 0
    for view in views:
        searched = [row for row in view.table.to_pylist() if row["status"] in ("success", "exhausted")]
        share = sum(row["success"] for row in searched) / len(searched)
        assert f"{share:.1%}" in html
        shown += min(10, len(searched))
    assert sum(tag == "figure" for tag, _ in Seen(html).tags) == shown
    assert shown > 10
    assert "jsma → 2" in html
    assert "--map prediction</span> <span>--theta 1<" in html


def test_its_pictures_are_the_images() -> None:
    html, dataset, views = a_page()
    shown = next(row for row in views[0].table.to_pylist() if row["success"])
    clean = dataset.images[shown["image_id"]]
    stored = np.array(shown["adversarial"], dtype=np.uint8).reshape(3, 7, 6)
    sheets = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB"))
        for uri in re.findall(r"background-image: url\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", html)
    ]
    assert np.array_equal(sheets[0][:7, :6], clean.transpose(1, 2, 0))
    assert np.array_equal(sheets[0][:7, 6:12], stored.transpose(1, 2, 0))
    assert np.array_equal(sheets[1][:7, :6], CHANGES[change_picture(clean, stored)])


def test_change_picture_points_the_right_way() -> None:
    clean = np.full((1, 1, 3), 100, dtype=np.uint8)
    moved = np.array([[[100, 200, 50]]], dtype=np.uint8)
    same, raised, lowered = CHANGES[change_picture(clean, moved)][0].astype(int)
    assert raised[0] > raised[2]
    assert lowered[2] > lowered[0]
    assert same.max() < 60
    assert picture(clean).shape == (1, 3)


def test_sheet_positions() -> None:
    sheet = Sheet.of([np.full((2, 3, 3), level, dtype=np.uint8) for level in range(7)], columns=3)
    assert (sheet.columns, sheet.rows) == (3, 3)
    assert [sheet.position(n) for n in (0, 1, 2, 6)] == [
        "0.0000% 0.0000%", "50.0000% 0.0000%", "100.0000% 0.0000%", "0.0000% 100.0000%",
    ]  # fmt: skip
