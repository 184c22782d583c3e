"""Models from folders and functions, as recipes that rebuild the same network."""

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.conftest import ColourNet, random_images
from workers.errors import WrongInput
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.models.loading import check_model, read_model


def test_the_seeds_cnn() -> None:
    model = CNN()
    assert [tuple(p.shape) for p in model.parameters()] == [
        (16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 2304), (10,),
    ]  # fmt: skip
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert (model.conv1.stride, model.conv2.stride, model.conv3.stride) == ((1, 1), (2, 2), (2, 2))
    assert (model.conv1.padding, model.conv2.padding, model.conv3.padding) == ((1, 1), (0, 0), (0, 0))
    limit = (6 / (2304 + 10)) ** 0.5  # Glorot uniform
    assert 0.9 * limit < float(model.linear.weight.detach().abs().max()) <= limit
    assert not model.conv1.bias.any()
    assert CNN(3, 13, 10, 7)(torch.zeros(2, 3, 13, 10)).shape == (2, 7)


def seeded_net() -> ColourNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ColourNet()


def test_a_function_s_weights_travel() -> None:
    recipe = read_model("tests.workers.test_loading:seeded_net")
    first, second = (pickle.loads(pickle.dumps(recipe)).build() for _ in range(2))
    images = torch.tensor(random_images(ColourNet.SHAPE, 4, 1)).float().div(255)
    assert torch.equal(first(images), second(images))
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())


def test_a_function_that_draws_its_weights_anew_is_refused() -> None:
    with pytest.raises(WrongInput, match=r"gives other weights at each call \(body\.\S+\): seed what it draws"):
        read_model("tests.conftest:ColourNet")


def test_weights_and_normalisation(tmp_path: Path) -> None:
    model = ColourNet().eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    recipe = read_model(
        "tests.conftest:ColourNet", weights=tmp_path / "w.safetensors", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)
    )
    images = torch.tensor(random_images(ColourNet.SHAPE, 4, 2)).float().div(255)
    shifted = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(recipe.build()(images), model(shifted))
    plain = read_model("tests.conftest:ColourNet", weights=tmp_path / "w.safetensors")
    assert plain.content_hash != recipe.content_hash
    assert plain.content_hash == read_model("tests.conftest:ColourNet", weights=tmp_path / "w.safetensors").content_hash


def test_a_folder_rebuilds_its_model(mnist_folder: Path, mnist: Dataset) -> None:
    recipe = read_model(str(mnist_folder))
    assert check_model(recipe.build(), mnist) == 10
    card = (mnist_folder / "model.json").read_text()
    assert recipe.architecture == {"name": "cnn", "channels": 1, "height": 28, "width": 28, "classes": 10}
    assert '"weights": "epoch-002.safetensors"' in card


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(WrongInput, match="SafetensorError"):
        read_model("tests.conftest:ColourNet", weights=tmp_path / "w.pt")
    (tmp_path / "model.json").write_text('{"architecture": {"name": "cnn"}, "weights": "w.pt"}')
    with pytest.raises(WrongInput, match="safetensors"):
        read_model(str(tmp_path))


class Skipping(torch.nn.Module):
    """A residual block with batch normalisation, and sizes that are computed from the images'."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.linear = torch.nn.BatchNorm2d(8), torch.nn.Linear(8 * 7 * 6, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.first(images)))
        return self.linear((hidden + self.second(hidden)).view(images.shape[0], -1))


def exported(path: Path, model: torch.nn.Module | None = None, *, dynamic: bool = True) -> Path:
    sizes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(model or Skipping().eval(), (torch.zeros(2, 3, 7, 6),), dynamic_shapes=sizes)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    model = Skipping().eval()
    return exported(tmp_path_factory.mktemp("programs") / "skipping.pt2", model), model


def test_an_exported_program_is_the_model_and_differentiable(skipping: tuple[Path, torch.nn.Module]) -> None:
    path, model = skipping
    recipe = read_model(str(path), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    built = pickle.loads(pickle.dumps(recipe)).build()
    images = torch.tensor(random_images((3, 7, 6), 5, 3)).float().div(255).requires_grad_(True)
    shifted = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(built(images), model(shifted))
    wanted, given = (torch.autograd.grad(logits.sum(), images)[0] for logits in (model(shifted), built(images)))
    torch.testing.assert_close(given, wanted)
    assert built.eval()(images[:1]).shape == (1, 7)
    assert not any(p.requires_grad for p in built.parameters())


def test_a_programs_hash_is_that_of_its_content(skipping: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, model = skipping
    same = exported(tmp_path / "same.pt2", model)
    assert read_model(str(same)).content_hash == read_model(str(path)).content_hash
    with torch.no_grad():
        model.linear.bias += 1  # type: ignore[operator]
    assert read_model(str(exported(same, model))).content_hash != read_model(str(path)).content_hash


def changed(path: Path, to: Path, name: str, change: Any) -> Path:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(to, "w") as other:
        for file in archive.namelist():
            content = archive.read(file)
            other.writestr(file, change(content) if file.endswith(name) else content)
    return to


def in_json(change: Any) -> Any:
    def changed_content(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return changed_content


def system(program: Any) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"


def evaluated(program: Any) -> None:
    sizes = program["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "__import__('os').system('true')"


def pickled(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("models/model.json", in_json(system), "torch.os.system is not one of torch.ops.aten"),
        ("models/model.json", in_json(evaluated), "is not understood"),
        ("model_weights_config.json", in_json(pickled), "a pickle, which is never loaded"),
        ("models/model.json", lambda content: content[:-9], "not a program of torch.export.save"),
        ("models/model.json", lambda content: b"[]", "not a program of torch.export.save"),
    ],
)
def test_a_program_that_could_run_code_is_refused(
    name: str, change: Any, says: str, skipping: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(WrongInput, match=says):
        read_model(str(changed(skipping[0], tmp_path / "changed.pt2", name, change)))


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.modules['exploded'] = sys",)


def test_what_a_program_brings_along_is_left_out(skipping: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    bomb = io.BytesIO()
    torch.save((Bomb(),), bomb)
    path = changed(skipping[0], tmp_path / "inputs.pt2", "sample_inputs/model.pt", lambda _: bomb.getvalue())
    path = changed(
        path, tmp_path / "both.pt2", "models/model.json", in_json(lambda p: p.update(guards_code=["exec('')"]))
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("skipping/data/aotinductor/model/evil.so", b"")
    assert read_model(str(path)).content_hash == read_model(str(skipping[0])).content_hash
    assert "exploded" not in sys.modules


def test_a_program_of_one_batch_size_or_in_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="takes exactly 2 images: export it with dynamic_shapes"):
        read_model(str(exported(tmp_path / "fixed.pt2", dynamic=False)))
    with pytest.raises(WrongInput, match="training mode"):
        read_model(str(exported(tmp_path / "training.pt2", Skipping().train())))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("w.safetensors", "weights without an architecture"),
        ("m.onnx", "ONNX is not read"),
        ("m.pth", "never loaded"),
        ("m.pt2", "not a program of torch.export.save"),
        ("absent.pt2", "no such file"),
    ],
)
def test_other_files_say_what_to_do(name: str, says: str, tmp_path: Path) -> None:
    if "absent" not in name:
        (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(WrongInput, match=f"^--model .*{name}: .*{says}"):
        read_model(str(tmp_path / name))


def test_the_hash_covers_the_users_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hashed_net"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(
        "from torch import nn\nfrom .layers import make\n\n\ndef net():\n    import hashed_extra\n    return make()\n"
    )
    (package / "layers.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Flatten()\n")
    (tmp_path / "hashed_extra.py").write_text("A = 1\n")
    (tmp_path / "unrelated.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [read_model("hashed_net.model:net").content_hash]
    for file in ("unrelated.py", "hashed_net/layers.py", "hashed_extra.py", "hashed_net/__init__.py"):
        (tmp_path / file).write_text((tmp_path / file).read_text() + "B = 2\n")
        found.append(read_model("hashed_net.model:net").content_hash)
    assert found[0] == found[1]
    assert len(set(found)) == 4
