"""The page: self-contained, its numbers those of the rows, its pictures those of the images."""

import base64
import io
import re

import numpy as np
import torch
from PIL import Image

from analysis.page import RunView, render
from analysis.page.sprites import Sheet, change_picture, picture
from tests.conftest import ColourNet, random_images
from tests.workers.test_fgsm import predictions
from workers.attacks import FGSM, JSMA
from workers.images import Dataset
from workers.models.loading import read_model
from workers.places import Place


def a_page() -> tuple[str, Dataset, list[RunView]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(71)
        recipe = read_model("tests.conftest:ColourNet")
    model = recipe.build()
    images = random_images(ColourNet.SHAPE, 30, 70)
    labels = predictions(model, images)
    labels[:3] = (labels[:3] + 1) % 7
    dataset = Dataset.checked(images, labels, split="all", name="<script>alert(1)</script>.npz")
    views = []
    for attack, target in ((FGSM(epsilon=0.2), None), (JSMA(), 2)):
        table = attack(model, images, labels, targets=target).to_table()
        views.append(RunView(Place("runs") / attack.NAME, attack, None if target is None else "2", 30, table))
    return render(views, recipe, dataset, predictions(model, images) == labels), dataset, views


def test_the_page_needs_nothing_else_and_escapes_names() -> None:
    html, _, _ = a_page()
    assert "alert(1)</script>" not in html
    assert not re.search(r"""(src|href)=["'](https?:)?//""", html)
    assert "http://" not in html.replace("http-equiv", "")
    assert "https://" not in html
    assert "default-src 'none'" in html


def test_its_numbers_are_the_rows() -> None:
    html, _, views = a_page()
    assert "90.0 %" in html  # 27 of 30 clean images are right
    shown = 0
    for view in views:
        searched = [row for row in view.table.to_pylist() if row["status"] in ("success", "exhausted")]
        share = sum(row["success"] for row in searched) / len(searched)
        assert f"{share:.1%}".replace("%", " %") in html
        shown += min(10, len(searched))
    assert html.count("<figure>") == shown
    assert shown > 10
    assert "jsma → 2" in html
    assert "--map prediction --theta 1.0" in html


def test_its_pictures_are_the_images() -> None:
    html, dataset, views = a_page()
    found = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert found
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB"))
    shown = next(row for row in views[0].table.to_pylist() if row["success"])
    assert np.array_equal(sheet[:7, :6], dataset.images[shown["image_id"]].transpose(1, 2, 0))
    stored = np.array(shown["adversarial"], dtype=np.uint8).reshape(3, 7, 6)
    assert np.array_equal(sheet[:7, 12:18], stored.transpose(1, 2, 0))


def test_change_picture_points_the_right_way() -> None:
    clean = np.full((1, 1, 3), 100, dtype=np.uint8)
    moved = np.array([[[100, 200, 50]]], dtype=np.uint8)
    same, raised, lowered = change_picture(clean, moved)[0].astype(int)
    assert raised[0] > raised[2]
    assert lowered[2] > lowered[0]
    assert same.max() < 60
    assert picture(clean).shape == (1, 3, 3)


def test_sheet_positions() -> None:
    sheet = Sheet.of([np.full((2, 3, 3), level, dtype=np.uint8) for level in range(7)], columns=3)
    assert (sheet.columns, sheet.rows) == (3, 3)
    assert [sheet.position(n) for n in (0, 1, 2, 6)] == [
        "0.0000% 0.0000%", "50.0000% 0.0000%", "100.0000% 0.0000%", "0.0000% 100.0000%",
    ]  # fmt: skip
