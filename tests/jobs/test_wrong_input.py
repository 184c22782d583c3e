"""Wrong input of every kind: exit code 2, one line on standard error, nothing on standard output, nothing written."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from jobs.main import main
from workers.models.cnn import CNN
from workers.training.defenses import DEFENSES

ROOT = Path(__file__).parent.parent.parent
COMMANDS = [
    *("data", "train", "attack", "evaluate", "detect", "transfer", "verify", "status", "report", "compact", "run"),
]
ATTACKS = ["fgsm", "ifgsm", "jsma", "de"]

MODELS = """
from types import SimpleNamespace

import torch
from torch import nn

class Fixed(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give
    def forward(self, images):
        return self.give(images)

def nothing(): return None
def a_class(): return nn.Linear
def raises(): raise RuntimeError("no weights\\nat hand")
def needs_an_argument(depth): return nn.Identity()
def exits(): raise SystemExit(3)
def images_back(): return nn.Identity()
def one_row(): return Fixed(lambda images: torch.zeros(1, 10))
def probabilities_of_one_image(): return Fixed(lambda images: torch.zeros(10))
def a_pair(): return Fixed(lambda images: (torch.zeros(len(images), 10), images))
def not_a_number(): return Fixed(lambda images: torch.full((len(images), 10), float("nan")))
def infinite(): return Fixed(lambda images: torch.full((len(images), 10), float("inf")))
def whole_numbers(): return Fixed(lambda images: torch.zeros(len(images), 10, dtype=torch.int64))
def linear(inputs, classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
def five_classes(): return linear(64, 5)
def one_logit(): return Fixed(lambda images: images.mean(dim=(1, 2, 3))[:, None])
def one_number(): return Fixed(lambda images: images.mean(dim=(1, 2, 3)))
def maps(): return Fixed(lambda images: torch.zeros(len(images), 10, 1, 1))
def a_dict(): return Fixed(lambda images: {"logits": torch.zeros(len(images), 10)})
def an_output(): return Fixed(lambda images: SimpleNamespace(logits=torch.zeros(len(images), 10)))
def in_half(): return Fixed(lambda images: torch.zeros(len(images), 10, dtype=torch.float16))
def in_bfloat16(): return Fixed(lambda images: torch.zeros(len(images), 10, dtype=torch.bfloat16))
def predictions(): return Fixed(lambda images: torch.zeros(len(images), dtype=torch.int64))
def double(): return linear(64, 10).double()
def half(): return linear(64, 10).half()
def naught(): return Fixed(lambda images: torch.eye(10)[0].expand(len(images), 10))
def wrong(): return Fixed(lambda images: torch.eye(11)[10].expand(len(images), 11))
def for_mnist(): return linear(784, 10)
number = 3
"""


def write_model(folder: Path, **changes: Any) -> None:
    """A model folder for the digits; changes are made to its model.json."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CNN(1, 8, 8, 10)
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
    architecture = {"name": "cnn", "channels": 1, "height": 8, "width": 8, "classes": 10}
    (folder / "model.json").write_text(json.dumps({"architecture": architecture, "weights": "w.safetensors"} | changes))


def write_run_json(folder: Path, **changes: Any) -> None:
    """Changes a run's run.json; a change to None takes the field out."""
    content = json.loads((folder / "run.json").read_text())
    for field, value in changes.items():
        inside = content["frozen"] if field in content["frozen"] else content
        inside[field] = value
        if value is None:
            del inside[field]
    (folder / "run.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with models, data, specs and a finished run; broken ones too."""
    home = tmp_path_factory.mktemp("home")
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    labels = np.arange(20) % 10
    with contextlib.chdir(home):
        write_model(Path("model"))
        write_model(Path("no-weights"), weights="absent.safetensors")
        write_model(Path("outside"), weights="../model/w.safetensors")
        write_model(Path("pickled"), weights="w.pt")
        write_model(Path("unknown"), architecture={"name": "resnet"})
        write_model(Path("unfit"), architecture={"name": "cnn", "height": 8, "width": 8, "classes": 9})
        write_model(Path("no-card"))
        Path("no-card/model.json").unlink()
        write_model(Path("broken-card"))
        Path("broken-card/model.json").write_text("{")
        write_model(Path("list-card"))
        Path("list-card/model.json").write_text("[]")
        write_model(Path("broken-weights"))
        Path("broken-weights/w.safetensors").write_bytes(b"not safetensors")
        Path("wrong_input_models.py").write_text(MODELS)
        Path("wrong_input_exits.py").write_text("import sys\nsys.exit('usage: …')\n")
        Path("wrong_input_syntax.py").write_text("def f(:\n")
        np.savez("good.npz", images=images, labels=labels)
        np.savez("float.npz", images=images / 255, labels=labels)
        np.savez("three.npz", images=images[:3], labels=labels[:3])
        np.savez("small.npz", images=images[:, :6, :6], labels=labels)
        np.savez("colour.npz", images=np.stack([images] * 3, axis=1), labels=labels)
        np.savez("eleven.npz", images=images, labels=labels + 1)
        np.savez("unlabelled.npz", images=images, labels=labels * 0 - 1)
        np.savez("last.npz", images=np.stack([images] * 3, axis=3), labels=labels)
        np.savez("none.npz", images=images[:0], labels=labels[:0])
        np.savez("lengths.npz", images=images, labels=labels[:7])
        np.savez("objects.npz", images=images.astype(object), labels=labels)
        pixels = images / 255
        pixels[17, 3, 3] = np.nan
        np.savez("nan.npz", images=pixels, labels=labels)
        Path("text.npz").write_text("not an archive")
        Path("text.parquet").write_text("a,b\n1,2\n")
        Path("loop").symlink_to("loop")
        os.mkfifo("pipe.npz")
        picture = io.BytesIO()
        Image.fromarray(images[0]).save(picture, "PNG")
        cells = [{"bytes": picture.getvalue(), "path": None}] * 17 + [{"bytes": b"<html>", "path": None}]
        pq.write_table(pa.table({"image": cells, "label": [0] * 18}), "picture.parquet")
        pq.write_table(pa.table({"image": [*cells[:17], None], "label": [0] * 18}), "null.parquet")
        pq.write_table(pa.table({"image": cells[:17], "label": [*[0.0] * 16, 1.5]}), "label.parquet")
        Path("broken.npz").write_bytes(b"PK\x03\x04 and no more")
        Path("broken.parquet").write_bytes(b"PAR1")
        pq.write_table(pa.table({"pixels": [1]}), "columns.parquet")
        Path("x-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
        Path("text.csv").write_text("1,2\n")
        Path("empty").mkdir()
        Path("foreign").mkdir()
        Path("foreign/notes.txt").write_text("mine")
        Path("a-file").write_text("mine")
        specs = {
            "text": "just text",
            "colon": "attack: fgsm: 3",
            "tab": "attack: fgsm\n\tepsilon: 1",
            "list": "- fgsm",
            "no-attack": "epsilon: 0.1",
            "list-attack": "attack: [fgsm]",
            "unknown-attack": "attack: fsgm",
            "unknown-key": "attack: fgsm\nepsilom: 0.1",
            "other-s-key": "attack: fgsm\ngamma: 0.1",
            "mapping": "attack: fgsm\nepsilon: {a: 1}",
            "wrong-value": "attack: fgsm\nepsilon: much",
            "nan": "attack: fgsm\nepsilon: .nan",
            "infinite": "attack: ifgsm\nstep_size: .inf",
            "list-value": "attack: ifgsm\nsteps: [1, 2]",
            "help": "attack: fgsm\nhelp: true",
            "numbered": "attack: fgsm\n1: 2",
            "twice": "attack: fgsm\nepsilon: 0.1\nlimit: 1\nepsilon: 0.3",
            "twice-spelled": "attack: ifgsm\nstep_size: 0.1\nstep-size: 0.3",
            "same-level": "attack: fgsm\nepsilon: [2/255, 0.00784313725]",
            "good": "attack: fgsm\nepsilon: 0.1",
        }
        for name, text in specs.items():
            Path(f"{name}.yaml").write_text(text)
        Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
        Path("folder.yaml").mkdir()
        search = ["--model", "model", "--data", "good.npz", "--limit", "2", "--workers", "1", "--out", "run"]
        assert main(["attack", "fgsm", *search]) == 0
        for name in ("cut", "empty-plan", "no-frozen", "no-attack-run", "later", "parameter", "zero", "part", "moved"):
            shutil.copytree("run", name)
        Path("cut/run.json").write_text(Path("cut/run.json").read_text()[:50])
        Path("empty-plan/plan.parquet").write_bytes(b"")
        write_run_json(Path("no-frozen"), frozen={})
        write_run_json(Path("no-attack-run"), attack=None)
        write_run_json(Path("later"), attack="telepathy")
        write_run_json(Path("parameter"), parameters={"epsilon": 5})
        write_run_json(Path("zero"), shard_size=0)
        Path("part/parts/part-000001.parquet").write_bytes(b"PAR1")
        recorded = json.loads(Path("run/run.json").read_text())["recorded"]
        write_run_json(Path("moved"), recorded=recorded | {"data": "gone"})
    yield home
    sys.modules.pop("wrong_input_models", None)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder, hidden ones too, with its size and the time it was changed."""
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Works in the folder; afterwards the module path is as it was, and what a fault left there is gone."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield home
    shutil.rmtree(home / "out", ignore_errors=True)


FGSM = "attack fgsm --model model --data good.npz --out out"
JSMA = "attack jsma --model model --data good.npz --out out"
DE = "attack de --model model --data good.npz --out out"
ON = "--data good.npz --out out"
TRAIN = "train --data digits --out out"
RUN = "run --data digits --out out --epochs 1"
DETECT = "detect --model model --data good.npz --training-data good.npz --out out"
TRANSFER = "transfer --data good.npz --out out"
EVALUATE = "evaluate --model model --data good.npz --out out"
LONG = "x" * 300

CASES = {
    # commands and flags
    "frobnicate": "Unknown command",
    "--frobnicate": "--frobnicate",
    "attakc fgsm": "attack",
    "attack": "requires an argument",
    "attack fsgm": "unknown attack fsgm",
    "attack fgsm": "requires an argument",
    "attack fgsm --data good.npz --out out": "--model",
    "attack fgsm --model model --out out": "--data",
    "attack fgsm --model model --data good.npz": "--out",
    f"{FGSM} --epsilom 0.1": "--epsilom",
    f"{FGSM} --gamma 0.1": "--gamma",
    f"{FGSM} stray": "stray",
    f"{FGSM} --epsilon": "--epsilon",
    "train": "--data",
    f"{TRAIN} --defence none": "--defence",
    "verify": "requires an argument",
    "status": "requires an argument",
    "report": "requires an argument",
    "run": "--out",
    "data": "requires an argument",
    "data minst": "unknown data set minst",
    # an attack's parameters
    f"{FGSM} --epsilon 0": "--epsilon",
    f"{FGSM} --epsilon -0.1": "--epsilon",
    f"{FGSM} --epsilon 1.1": "--epsilon",
    f"{FGSM} --epsilon 0.003": "--epsilon",
    f"{FGSM} --epsilon nan": "--epsilon",
    f"{FGSM} --epsilon inf": "--epsilon",
    f"{FGSM} --epsilon=-inf": "--epsilon",
    f"{FGSM} --epsilon much": "--epsilon",
    "attack ifgsm --steps 0 --model model --data good.npz --out out": "--steps",
    "attack ifgsm --steps 1.5 --model model --data good.npz --out out": "--steps",
    "attack ifgsm --step-size 0 --model model --data good.npz --out out": "--step-size",
    "attack ifgsm --step-size nan --model model --data good.npz --out out": "--step-size",
    f"{JSMA} --map pairs": "--map",
    f"{JSMA} --theta 0": "--theta",
    f"{JSMA} --theta 0.001": "--theta",
    f"{JSMA} --theta nan": "--theta",
    f"{JSMA} --theta 1.01": "--theta",
    f"{JSMA} --gamma 0": "--gamma",
    f"{JSMA} --gamma 0.01": "--gamma",
    f"{JSMA} --gamma 2": "--gamma",
    f"{JSMA} --max-steps 0": "--max-steps",
    f"{DE} --pixels 0": "--pixels",
    f"{DE} --pixels 65": "--pixels",
    f"{DE} --population 3": "--population",
    f"{DE} --generations -1": "--generations",
    f"{DE} --strategy best2bin": "--strategy",
    f"{DE} --fitness luck": "--fitness",
    f"{DE} --mutation 0": "--mutation",
    f"{DE} --mutation inf": "--mutation",
    f"{DE} --recombination 1.5": "--recombination",
    # which images, towards what
    f"{FGSM} --label 10": "--label",
    f"{FGSM} --label -1": "--label",
    f"{FGSM} --label seven": "--label",
    f"{FGSM} --limit 0": "--limit",
    f"{FGSM} --limit 2.5": "--limit",
    f"{FGSM} --shard-size 0": "--shard-size",
    f"{FGSM} --seed -1": "--seed",
    f"{FGSM} --seed 9223372036854775808": "--seed",
    f"{FGSM} --ids 1,2,1": "--ids: an image is named twice",
    f"{FGSM} --ids 20": "--ids",
    f"{FGSM} --ids=-1": "--ids",
    f"{FGSM} --ids 1,,2": "--ids",
    f"{FGSM} --ids 1.5": "--ids",
    f"{FGSM} --ids all": "--ids",
    f"{FGSM} --ids 99999999999999999999": "--ids",
    f"{FGSM} --ids 0 --label 7": "no image is left",
    f"{FGSM} --target 10": "--target",
    f"{FGSM} --target -1": "--target",
    f"{FGSM} --target 6.0": "--target",
    f"{FGSM} --target likely": "--target",
    f"{FGSM} --target nan": "--target",
    f"{FGSM} --correct=maybe": "--correct",
    f"{FGSM} --nonsense 1": "The attack takes --epsilon.",
    f"attack nobody:PGD --model model {ON}": "torchattacks:NAME, foolbox:NAME",
    # data
    "attack fgsm --model model --out out --data absent.npz": "absent.npz",
    "attack fgsm --model model --out out --data minst": "minst",
    "attack fgsm --model model --out out --data float.npz": "uint8",
    "attack fgsm --model model --out out --data broken.npz": "broken.npz",
    "attack fgsm --model model --out out --data broken.parquet": "broken.parquet",
    "attack fgsm --model model --out out --data columns.parquet": "column 'image'",
    "attack fgsm --model model --out out --data x-images-idx3-ubyte": "truncated",
    "attack fgsm --model model --out out --data text.csv": "text.csv",
    "attack fgsm --model model --out out --data empty": "holds none of",
    "attack fgsm --model model --out out --data model/w.safetensors": "expected .npz",
    "attack fgsm --model model --out out --data colour.npz": "3×8×8",
    "attack fgsm --model model --out out --data small.npz": "1×6×6",
    "attack fgsm --model model --out out --data eleven.npz": "row 9 of eleven.npz: label 10, the model has 10 classes",
    "attack fgsm --model model --out out --data unlabelled.npz": "row 0 holds -1, as test sets without labels do",
    "attack fgsm --model model --out out --data last.npz": "--layout hwc",
    "attack fgsm --model model --out out --data last.npz --layout nhwc": "--layout",
    "attack fgsm --model model --out out --data none.npz": "none.npz: holds no images",
    "attack fgsm --model model --out out --data lengths.npz": "lengths.npz: 20 images but 7 labels",
    "attack fgsm --model model --out out --data objects.npz": "objects.npz: array images holds Python objects",
    "attack fgsm --model model --out out --data nan.npz": "(0 to 255), got float64; row 17 holds nan",
    "attack fgsm --model model --out out --data text.npz": "text.npz: not a readable .npz file: expected an archive",
    "attack fgsm --model model --out out --data text.parquet": "text.parquet: not a readable Parquet file",
    "attack fgsm --model model --out out --data loop": "loop",
    "attack fgsm --model model --out out --data pipe.npz": "pipe.npz: expected a file or a folder",
    "attack fgsm --model model --out out --data picture.parquet": "picture.parquet: row 17: cannot be decoded",
    "attack fgsm --model model --out out --data null.parquet": "null.parquet: images must have no nulls, row 17",
    "attack fgsm --model model --out out --data label.parquet": "labels must be integers, got float64; row 16",
    "evaluate --model model --out out --data last.npz": "--layout hwc",
    "detect random --model model --data good.npz --training-data last.npz --out out": "--layout hwc",
    "transfer --models model,unfit --out out --data last.npz": "--layout hwc",
    "train --data last.npz --test-data last.npz --out out": "--layout hwc",
    "run --data pipe.npz --out out": "pipe.npz: expected a file or a folder",
    f"attack fgsm --model model --out out --data {LONG}": LONG,
    f"{FGSM} --split train": "--split",
    "attack fgsm --model model --out out --data digits --split validation": "--split",
    # models
    f"attack fgsm --model absent {ON}": "--model absent",
    f"attack fgsm --model model/model.json {ON}": "--model model/model.json",
    f"attack fgsm --model model/w.safetensors {ON}": "weights without an architecture",
    f"attack fgsm --model empty {ON}": "model.json",
    f"attack fgsm --model no-card {ON}": "model.json",
    f"attack fgsm --model broken-card {ON}": "model.json",
    f"attack fgsm --model list-card {ON}": "model.json",
    f"attack fgsm --model no-weights {ON}": "absent.safetensors",
    f"attack fgsm --model outside {ON}": "outside",
    f"attack fgsm --model pickled {ON}": ".safetensors",
    f"attack fgsm --model broken-weights {ON}": "broken-weights",
    f"attack fgsm --model unknown {ON}": "resnet",
    f"attack fgsm --model unfit {ON}": "unfit",
    f"attack fgsm --model {LONG} {ON}": LONG,
    f"attack fgsm --model wrong_input_absent:f {ON}": "wrong_input_absent",
    f"attack fgsm --model wrong_input_syntax:f {ON}": "SyntaxError",
    f"attack fgsm --model wrong_input_exits:f {ON}": "wrong_input_exits",
    f"attack fgsm --model :f {ON}": ":f",
    f"attack fgsm --model wrong_input_models: {ON}": "no function",
    f"attack fgsm --model wrong_input_models:absent {ON}": "no function 'absent'",
    f"attack fgsm --model wrong_input_models:number {ON}": "no function 'number'",
    f"attack fgsm --model wrong_input_models:nothing {ON}": "NoneType",
    f"attack fgsm --model wrong_input_models:a_class {ON}": "nn.Module",
    f"attack fgsm --model wrong_input_models:raises {ON}": "no weights at hand",
    f"attack fgsm --model wrong_input_models:exits {ON}": "wrong_input_models:exits",
    f"attack fgsm --model wrong_input_models:needs_an_argument {ON}": "argument",
    f"attack fgsm --model wrong_input_models:images_back {ON}": "logits [2, classes], got [2, 1, 8, 8]",
    f"attack fgsm --model wrong_input_models:one_logit {ON}": "[-z, z]",
    f"attack fgsm --model wrong_input_models:one_number {ON}": "[-z, z]",
    f"attack fgsm --model wrong_input_models:in_half {ON}": "32 or 64 bits, got torch.float16: call .float() on them",
    f"attack fgsm --model wrong_input_models:in_bfloat16 {ON}": "got torch.bfloat16: call .float() on them",
    f"attack fgsm --model wrong_input_models:predictions {ON}": "got [2]: return the logits, not the classes",
    f"attack fgsm --model wrong_input_models:maps {ON}": "[2, classes], got [2, 10, 1, 1]: return it with .flatten(1)",
    f"attack fgsm --model wrong_input_models:a_dict {ON}": "got dict: return its ['logits']",
    f"attack fgsm --model wrong_input_models:an_output {ON}": "got SimpleNamespace: return its .logits",
    f"attack fgsm --model wrong_input_models:double {ON}": "is of float64, images are float32: call .float()",
    f"attack fgsm --model wrong_input_models:half {ON}": "is of float16, images are float32: call .float()",
    f"attack fgsm --model wrong_input_models:one_row {ON}": "got [1, 10]",
    f"attack fgsm --model wrong_input_models:probabilities_of_one_image {ON}": "got [10]",
    f"attack fgsm --model wrong_input_models:a_pair {ON}": "got tuple: return its [0]",
    f"attack fgsm --model wrong_input_models:not_a_number {ON}": "finite",
    f"attack fgsm --model wrong_input_models:infinite {ON}": "finite",
    f"attack fgsm --model wrong_input_models:whole_numbers {ON}": "floating-point",
    f"attack fgsm --model wrong_input_models:five_classes {ON}": "5 classes",
    f"attack fgsm --model wrong_input_models:for_mnist {ON}": "1×8×8",
    f"{FGSM} --weights model/w.safetensors": "--weights",
    f"attack fgsm --model wrong_input_models:five_classes --weights absent {ON}": "--weights absent",
    f"attack fgsm --model wrong_input_models:five_classes --weights model/w.safetensors {ON}": "five_classes",
    f"attack fgsm --model wrong_input_models:five_classes --weights a-file {ON}": "five_classes",
    f"{FGSM} --mean 0.5": "--mean and --std",
    f"{FGSM} --std 0.5": "--mean and --std",
    f"{FGSM} --mean 0.5,0.5 --std 0.5": "--mean and --std",
    f"{FGSM} --mean 0,0,0 --std 1,1,1": "--mean",
    f"{FGSM} --mean 0 --std 0": "--std",
    f"{FGSM} --mean 0 --std=-1": "--std",
    f"{FGSM} --mean nan --std 1": "--mean",
    f"{FGSM} --mean 0 --std inf": "--std",
    f"{FGSM} --mean half --std 1": "--mean",
    # where
    f"{FGSM} --workers 0": "--workers",
    f"{FGSM} --workers two": "--workers",
    f"{FGSM} --cpus-per-worker 0": "--cpus-per-worker",
    f"{FGSM} --cpus-per-worker nan": "--cpus-per-worker",
    f"{FGSM} --gpus-per-worker -1": "--gpus-per-worker",
    f"{FGSM} --gpus-per-worker inf": "--gpus-per-worker",
    f"{FGSM} --address 127.0.0.1:1": "--address 127.0.0.1:1",
    f"{FGSM} --address nowhere.invalid:6379": "--address nowhere.invalid:6379",
    f"{FGSM} --address nowhere": "--address nowhere",
    # where the results go
    "attack fgsm --model model --data good.npz --out a-file": "--out a-file",
    "attack fgsm --model model --data good.npz --out a-file/run": "--out a-file/run",
    "attack fgsm --model model --data good.npz --out foreign": "--out foreign",
    "attack fgsm --model model --data good.npz --out model": "--out model",
    "attack fgsm --model model --data good.npz --limit 2 --out run --seed 1": "seed",
    "attack fgsm --model model --data good.npz --limit 3 --out run": "limit",
    "attack fgsm --model model --data good.npz --limit 2 --out run --epsilon 0.2": "epsilon",
    "attack ifgsm --model model --data good.npz --limit 2 --out run": "attack",
    "attack fgsm --model model --data digits --limit 2 --out run": "run",
    "attack fgsm --model model --data good.npz --limit 2 --out run --shard-size 7": "shard_size",
    "attack fgsm --model model --data good.npz --limit 2 --out cut": "cut",
    # evaluations
    "evaluate": "requires an argument",
    "evaluate --model model --data good.npz": "--out",
    f"{EVALUATE} --norm l1": "--norm",
    f"{EVALUATE} --epsilon 8/0": "--epsilon: expected a number, as 0.03 or 8/255, got '8/0'",
    f"{EVALUATE} --epsilon 1/2550": "--epsilon",
    f"{EVALUATE} --require 9/": "--require: expected a number",
    f"{EVALUATE} --epsilon 0": "--epsilon",
    f"{EVALUATE} --epsilon 1.1": "--epsilon",
    f"{EVALUATE} --epsilon nan": "--epsilon",
    f"{EVALUATE} --pixels 0": "--pixels",
    f"{EVALUATE} --pixels 65": "--pixels",
    f"{EVALUATE} --pixels 1 --epsilon 0.1": "--pixels",
    f"{EVALUATE} --target 3": "--target",
    f"{EVALUATE} --label 10": "--label",
    f"{EVALUATE} --ids 20": "--ids",
    f"{EVALUATE} --max-queries 0": "--max-queries",
    f"{EVALUATE} --max-seconds 0": "--max-seconds",
    f"{EVALUATE} --max-seconds inf": "--max-seconds",
    f"{EVALUATE} --require 1.1": "--require",
    f"{EVALUATE} --accept-undecided": "--accept-undecided",
    "evaluate --model model --data good.npz --out a-file": "--out a-file",
    "evaluate --model model --data good.npz --out foreign": "not an evaluation's folder",
    "evaluate --model model --data good.npz --out run": "not an evaluation's folder",
    # detectors
    "detect": "requires an argument",
    "detect vae-kl --model model --data good.npz": "--out",
    f"{DETECT}": "DETECTORS",
    f"{DETECT} vae": "unknown detector vae",
    f"{DETECT} random --pixels 2 --no-few-pixel": "those are the searches of the threat",
    f"{DETECT} random --training-seeds 2": "none of random trains a network",
    f"{DETECT} vae-kl --training-seeds 0": "--training-seeds",
    f"{DETECT} vae-kl,code_size=0": "code-size",
    f"{DETECT} vae-kl,code_size=many": "code-size",
    f"{DETECT} vae-kl,size=3": "size",
    f"{DETECT} vae-kl,size": "PARAMETER=VALUE",
    f"{DETECT} random random": "named twice",
    f"{DETECT} absent_module:f": "absent_module",
    f"{DETECT} random --norm linf --epsilon 2": "--epsilon",
    f"{DETECT} random --epsilon 8/255/2": "--epsilon: expected a number, as 0.03 or 8/255, got '8/255/2'",
    f"{DETECT} random --pixels 2 --epsilon 0.1": "--pixels",
    f"{DETECT} random --pixels 0": "--pixels",
    f"{DETECT} random --epsilon 0": "--epsilon",
    f"{DETECT} random --limit 0": "--limit",
    f"{DETECT} random --steps 3": "--steps",
    f"{DETECT} random --tolerance 1": "--tolerance",
    f"{DETECT} random --require robust": "--require",
    f"{DETECT} random --seed -1": "--seed",
    "detect random --model model --data good.npz --out out --training-data absent.npz": "absent.npz",
    "detect random --model model --data good.npz --out out --training-data colour.npz": "--training-data: images are",
    f"{DETECT} random": "must not be trained on",
    "detect random --model model --data good.npz --training-data good.npz --out a-file": "--out a-file",
    "detect random --model model --data good.npz --training-data good.npz --out foreign": "not a detection's folder",
    "detect random --model model --data good.npz --out s3://bucket/folder": "expected a folder on a disk",
    "detect random --model model --data good.npz --out out --networks s3://bucket/folder": "--networks s3://bucket",
    "detect random --model model --data good.npz --out out --networks a-file": "--networks a-file",
    "detect random --model model --data digits --out out --foreign mnisst": "--foreign mnisst",
    # transfer
    "transfer --data good.npz --out out": "--models",
    "transfer --models model,unfit --out out": "--data",
    "transfer --models model,unfit --data good.npz": "--out",
    f"{TRANSFER} --models model": "expected two at least, or one and --surrogates, got 1",
    f"{TRANSFER} --models ,": "expected two at least",
    f"{TRANSFER} --models , --surrogates substitute": "expected two at least",
    f"{TRANSFER} --models model,model": "--models: the same one is named twice",
    f"{TRANSFER} --models model,absent": "absent: neither a model folder",
    f"{TRANSFER} --models model,unfit": "--model unfit: RuntimeError",
    f"{TRANSFER} --models model,pickled": "safetensors",
    f"{TRANSFER} --models model,wrong_input_models:for_mnist": "the model fails on images of 1×8×8",
    f"{TRANSFER} --models model,wrong_input_models:not_a_number": "finite",
    f"{TRANSFER} --models model --surrogates seeds": "unknown surrogate seeds",
    f"{TRANSFER} --models model --surrogates substitute,substitute": "--surrogates: the same one is named twice",
    f"{TRANSFER} --models model --surrogates seed": "give --training-data",
    f"{TRANSFER} --models model --surrogates seed --training-data absent.npz": "--training-data",
    f"{TRANSFER} --models model --surrogates seed --training-data small.npz": "--training-data: images are",
    f"{TRANSFER} --models model --surrogates seed --training-data good.npz": "must not be trained on that",
    f"{TRANSFER} --models model --surrogates substitute --networks a-file": "--networks a-file",
    f"{TRANSFER} --models model --surrogates substitute --surrogate-epochs 0": "--surrogate-epochs",
    f"{TRANSFER} --models model,wrong_input_models:five_classes": "label 5, the model has 5 classes",
    f"{TRANSFER} --models model --surrogates substitute --mean 0.5": "--mean and --std",
    f"{TRANSFER} --models model --surrogates substitute --mean 0.5,0.5 --std 1,1": "--mean: images have 1 channels",
    f"{TRANSFER} --models model --surrogates substitute --epsilon 1/": "--epsilon: expected a number",
    f"{TRANSFER} --models model --surrogates substitute --norm l0": "--norm",
    f"{TRANSFER} --models model --surrogates substitute --epsilon 0": "--epsilon",
    f"{TRANSFER} --models model --surrogates substitute --epsilon 0.003": "--epsilon",
    f"{TRANSFER} --models model --surrogates substitute --epsilon 1.1": "--epsilon",
    f"{TRANSFER} --models model --surrogates substitute --epsilon nan": "--epsilon",
    f"{TRANSFER} --models model --surrogates substitute --limit 0": "--limit",
    f"{TRANSFER} --models model --surrogates substitute --steps 0": "--steps",
    f"{TRANSFER} --models model --surrogates substitute --queries 9": "--queries",
    f"{TRANSFER} --models model --surrogates substitute --tolerance 0": "--tolerance",
    f"{TRANSFER} --models model --surrogates substitute --require broken": "--require",
    f"{TRANSFER} --models model --surrogates substitute --seed -1": "--seed",
    f"{TRANSFER} --models model --surrogates substitute --split test": "--split",
    f"{TRANSFER} --models wrong_input_models:naught --surrogates substitute --workers 1000": "--workers 1000",
    f"{TRANSFER} --models model,wrong_input_models:wrong --workers 1": "none of 20 is classified right by all models",
    "transfer --models model --surrogates substitute --data three.npz --out out": "begins with a quarter of the images",
    "transfer --models model --surrogates substitute --data good.npz --out a-file": "--out a-file",
    "transfer --models model --surrogates substitute --data good.npz --out foreign": "not a transfer's folder",
    "transfer --models model --surrogates substitute --data good.npz --out run": "not a transfer's folder",
    "transfer --models model --surrogates substitute --data good.npz --out s3://b/x": "expected a folder on a disk",
    # YAML
    "attack absent.yaml --out out": "absent.yaml",
    "attack folder.yaml --out out": "folder.yaml",
    "attack binary.yaml --out out": "not YAML",
    "attack text.yaml --out out": "attack: NAME",
    "attack colon.yaml --out out": "not YAML",
    "attack tab.yaml --out out": "not YAML",
    "attack list.yaml --out out": "attack: NAME",
    "attack no-attack.yaml --out out": "attack: NAME",
    "attack list-attack.yaml --out out": "attack: NAME",
    "attack unknown-attack.yaml --out out": "fsgm",
    f"attack unknown-key.yaml --model model {ON}": "--epsilom",
    f"attack other-s-key.yaml --model model {ON}": "--gamma",
    f"attack mapping.yaml --model model {ON}": "epsilon",
    f"attack wrong-value.yaml --model model {ON}": "--epsilon",
    f"attack nan.yaml --model model {ON}": "--epsilon",
    f"attack infinite.yaml --model model {ON}": "--step-size",
    f"attack list-value.yaml --model model {ON}": "--steps",
    f"attack fgsm --model model {ON} --epsilon 0.1,0.1": "--epsilon",
    f"attack fgsm --model model {ON} --epsilon 0.1,2": "--epsilon",
    f"attack fgsm --model model {ON} --epsilon ,": "--epsilon",
    f"attack twice.yaml --model model {ON}": "twice.yaml: not YAML: epsilon is given twice",
    f"attack twice-spelled.yaml --model model {ON}": "step-size is given twice",
    f"attack same-level.yaml --model model {ON}": "--epsilon: expected different values",
    f"attack fgsm --model model {ON} --epsilon 8/0": "--epsilon: expected numbers, as 0.03 or 8/255,",
    f"attack fgsm --model model {ON} --epsilon 2/255,": "--epsilon",
    f"attack fgsm --model model {ON} --epsilon=-1/255": "--epsilon",
    f"attack fgsm --model model {ON} --epsilon 0.031,7/255": "0.031 and 7/255 are the same in whole levels",
    f"attack fgsm --model model {ON} --epsilon 0.1 --epsilon 0.2": "--epsilon",
    f"attack pgd --model model {ON} --step-size 1/0": "--step-size: expected a number",
    f"attack jsma --model model {ON} --theta nan/1": "--theta: expected a number",
    f"attack de --model model {ON} --pixels 1,1.5": "--pixels",
    f"attack de --model model {ON} --pixels 1,99": "--pixels",
    f"attack help.yaml --model model {ON}": "help",
    f"attack numbered.yaml --model model {ON}": "--1",
    f"attack good.yaml --model model {ON} stray": "stray",
    f"attack good.yaml --model model {ON} --epsilon 7": "--epsilon",
    "attack good.yaml --model model --data good.npz": "--out",
    # training
    f"{TRAIN} --epochs 0": "--epochs",
    f"{TRAIN} --epochs 1.5": "--epochs",
    f"{TRAIN} --epochs many": "--epochs",
    f"{TRAIN} --seed -1": "--seed",
    f"{TRAIN} --batch-size 0": "--batch-size",
    f"{TRAIN} --batch-size 2000": "--batch-size",
    f"{TRAIN} --learning-rate 0": "--learning-rate",
    f"{TRAIN} --learning-rate nan": "--learning-rate",
    f"{TRAIN} --learning-rate inf": "--learning-rate",
    # defenses
    f"{TRAIN} --defense": "--defense",
    f"{TRAIN} --defense pdg": "unknown defense pdg",
    f"{TRAIN} --defense=pdg": "unknown defense pdg",
    f"{TRAIN} --defense fgsm --defense pgd": "--defense",
    f"{TRAIN} --defense=pgd --defense fgsm": "--defense",
    f"{TRAIN} --epsilon 0.1": "--epsilon",
    f"{TRAIN} --defense none --epsilon 0.1": "--epsilon",
    f"{TRAIN} --defense fgsm --steps 3": "The defense takes --epsilon, --warmup, --clean-share.",
    f"{TRAIN} --defense fgsm-rs --beta 3": "--beta",
    f"{TRAIN} --defense fgsm --epsilon 0": "--epsilon",
    f"{TRAIN} --defense pgd --step-size 2//255": "--step-size: expected a number",
    f"{TRAIN} --defense fgsm --epsilon 1.1": "--epsilon",
    f"{TRAIN} --defense fgsm --epsilon nan": "--epsilon",
    f"{TRAIN} --defense fgsm --epsilon 0.1,0.2": "--epsilon",
    f"{TRAIN} --defense fgsm --clean-share -0.1": "--clean-share",
    f"{TRAIN} --defense fgsm --clean-share 2": "--clean-share",
    f"{TRAIN} --defense fgsm-rs --step-size 0": "--step-size",
    f"{TRAIN} --defense fgsm-rs --step-size 3": "--step-size",
    f"{TRAIN} --defense fgsm-rs --warmup -1": "--warmup",
    f"{TRAIN} --defense pgd --steps 0": "--steps",
    f"{TRAIN} --defense pgd --steps 1.5": "--steps",
    f"{TRAIN} --defense pgd --step-size inf": "--step-size",
    f"{TRAIN} --defense pgd --warmup many": "--warmup",
    f"{TRAIN} --defense trades --beta -1": "--beta",
    f"{TRAIN} --defense trades --beta nan": "--beta",
    f"{TRAIN} --defense trades --steps 1001": "--steps",
    f"{TRAIN} --defense distillation --temperature 0.5": "--temperature",
    f"{TRAIN} --defense distillation --temperature inf": "--temperature",
    f"{TRAIN} --defense distillation --teacher-epochs 0": "--teacher-epochs",
    f"{TRAIN} --defense distillation --epsilon 0.3": "The defense takes --temperature, --teacher-epochs.",
    f"{TRAIN} --defense teacher": "unknown defense teacher",
    "train --data digits --defense distillation --out foreign": "--out foreign",
    "train --data digits --defense distillation --out a-file": "--out a-file",
    f"{TRAIN} --defense null --certainty 0": "--certainty",
    f"{TRAIN} --defense null --certainty 1.01": "--certainty",
    f"{TRAIN} --defense null --initial-epochs 0": "--initial-epochs",
    f"{TRAIN} --defense null --epsilon 2": "--epsilon",
    f"{TRAIN} --defense rbf --units 0": "--units",
    f"{TRAIN} --defense rbf --beta 0": "--beta",
    f"{TRAIN} --defense rbf --base-epochs 0": "--base-epochs",
    f"{TRAIN} --defense synthesis --hidden 0": "--hidden",
    f"{TRAIN} --defense synthesis --code-size 0": "--code-size",
    f"{TRAIN} --defense synthesis --spread 0": "--spread",
    f"{TRAIN} --defense synthesis --starts 0": "--starts",
    f"{TRAIN} --defense synthesis --steps -1": "--steps",
    "train --data good.npz --out out": "--test-data",
    "train --data digits --test-data good.npz --out out --batch-size 2000": "--batch-size",
    "train --data good.npz --test-data colour.npz --out out": "test images",
    "train --data good.npz --test-data absent.npz --out out": "absent.npz",
    "train --data small.npz --test-data small.npz --out out --batch-size 5": "7×7",
    "train --data empty --out out": "holds none of",
    "train --data digits --out a-file": "--out a-file",
    "train --data digits --out a-file/model": "--out a-file/model",
    "train --data digits --out foreign": "--out foreign",
    "train --data digits --out model": "--out model",
    "train --data digits --out broken-card": "--out broken-card",
    # runs
    "verify absent": "absent",
    "verify foreign": "foreign",
    "verify a-file": "a-file",
    "verify model": "model",
    "verify cut": "cut",
    "verify empty-plan": "empty-plan",
    "verify no-frozen": "no-frozen",
    "verify no-attack-run": "no-attack-run",
    "verify later": "telepathy",
    "verify parameter": "epsilon",
    "verify zero": "zero",
    "verify moved": "gone",
    "verify run --data absent.npz": "absent.npz",
    "verify run --data digits": "digits",
    "verify run --model absent": "absent",
    "verify run --model wrong_input_models:five_classes": "classes",
    "verify run --weights a-file": "--weights",
    "status absent": "absent",
    "status nowhere://bucket/run": "nowhere",
    "compact absent": "absent",
    "compact foreign": "foreign",
    "compact a-file": "a-file",
    "compact empty": "empty",
    "status empty": "empty",
    "status a-file": "a-file",
    "status cut": "cut",
    "status no-frozen": "no-frozen",
    "status zero": "zero",
    "report absent": "absent",
    "report run absent": "absent",
    "report foreign": "foreign",
    "report moved run": "gone",
    "report run --out foreign": "--out foreign",
    "report run --out .": "--out .",
    "report run --out a-file/page.html": "--out a-file",
    # the experiment
    f"{RUN} --label 6": "--target",
    f"{RUN} --label 10": "--label",
    f"{RUN} --target 10": "--target",
    f"{RUN} --target -1": "--target",
    f"{RUN} --sample 0": "--sample",
    f"{RUN} --population 3": "--population",
    f"{RUN} --workers 0": "--workers",
    "run --data minst --out out": "minst",
    "run --data good.npz --out out": "--data",
    "run --full --detector nonsense --data digits --out out": "unknown detector nonsense",
    "run --detector magnet --data digits --out out": "with --full only",
    "run --data empty --out out": "holds none of",
    "run --data digits --out a-file": "--out a-file",
    "run --data digits --out a-file/experiment": "--out a-file/experiment",
    "run --data digits --out foreign": "--out foreign",
    # on a real Ray
    f"{FGSM}/in/new/folders --workers 1000": "--workers 1000",
    f"{FGSM} --gpus-per-worker 100": "--gpus-per-worker 100",
}


def refuse(arguments: list[str], said: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = listing(folder)
    capfd.readouterr()
    code = main(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("brittle: ")
    assert said in err
    assert listing(folder) == before


@pytest.mark.parametrize(("command", "said"), CASES.items(), ids=[command.replace(LONG, "LONG") for command in CASES])
def test_wrong_input(command: str, said: str, inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refuse(command.split(), said, inside, capfd)


@pytest.mark.parametrize("flag", ["--model", "--data", "--out", "--ids", "--mean"])
@pytest.mark.parametrize("value", ["two\nlines", "new\r\nline"])
def test_a_value_of_two_lines_is_told_in_one(
    flag: str, value: str, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {"--model": "model", "--data": "good.npz", "--out": "foreign"} | {flag: value} | {"--target": "10"}
    refuse(["attack", "fgsm", *(text for pair in given.items() for text in pair)], "--", inside, capfd)


def test_a_run_that_another_driver_holds(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from cluster.store import RunFolder
    from workers.places import Place

    with RunFolder(Place.of("run")).locked():
        refuse([*FGSM.split()[:-1], "run", "--limit", "2"], "another brittle is writing", inside, capfd)


def test_an_experiment_counts_its_workers_before_it_trains(
    inside: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*arguments: object) -> None:
        raise RuntimeError("training began")

    monkeypatch.setattr("jobs.run.train_model", trained)
    refuse([*RUN.split(), "--workers", "1000"], "--workers 1000", inside, capfd)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        *([command] for command in COMMANDS),
        *(["attack", attack] for attack in ATTACKS),
        *(["train", "--defense", defense] for defense in DEFENSES),
    ],
    ids=lambda arguments: " ".join(arguments) or "brittle",
)
def test_help(arguments: list[str], inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = listing(inside)
    assert main([*arguments, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "Usage: brittle" in out
    assert all(word in out for word in (COMMANDS if not arguments else ATTACKS if arguments == ["attack"] else []))
    if arguments:
        assert f"brittle {arguments[0]}" in out.split("Usage:")[1]
    if "train" in arguments:
        shown = arguments[2:] or list(DEFENSES)
        assert all(f"--defense {name}" in out for name in shown if name != "none")
        flags = DEFENSES[arguments[-1] if len(arguments) > 1 else "none"].model_fields
        assert all(f"--{flag.replace('_', '-')}" in out for flag in flags)
    assert listing(inside) == before


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    out, err = capfd.readouterr()
    assert out.strip()
    assert err == ""


def call(module: str, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The command as `ray job submit` calls it, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-m", f"jobs.{module}", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("attack", [*FGSM.split()[1:], "--epsilon", "nan"], "--epsilon"),
        ("attack", ["fgsm", "--model", "wrong_input_models:raises", *ON.split()], "no weights at hand"),
        ("verify", ["foreign"], "not a run's folder"),
    ],
    ids=["flag", "model", "run"],
)
def test_in_a_process_of_its_own(module: str, arguments: list[str], said: str, inside: Path) -> None:
    before = listing(inside)
    done = call(module, *arguments, folder=inside)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert listing(inside) == before


def test_help_in_a_process_of_its_own(inside: Path) -> None:
    done = call("attack", "--help", folder=inside)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pixel" in done.stdout
