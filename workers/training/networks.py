"""The training of a detector's own networks, which see images and no labels: resumable after every epoch."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from workers.budgets import Number
from workers.errors import WrongInput
from workers.files import exclusive
from workers.images import Dataset
from workers.models.vae import VAE
from workers.parameters import Parameters
from workers.training.checkpoints import restore, same_training, save

__all__ = ["Network", "NetworkEpoch", "OneLossNetwork", "VAENetwork", "train_network"]


class Network(Parameters):
    """A network and how it is trained: what `train_network` needs to know; immutable."""

    NAME: ClassVar[str]

    epochs: int = Field(30, ge=1, le=10_000, description="Passes over the training images.")
    batch_size: int = Field(128, ge=1, description="Images a step; an incomplete last batch is left out.")
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="Of the optimizer.")
    seed: int = Field(42, ge=0, lt=2**31, description="Of the initial weights, the order of images and the noise.")

    @property
    def key(self) -> str:
        """The name and eight hexadecimal digits of all parameters: what a folder of trained networks calls it."""
        return f"{self.NAME}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"

    @abstractmethod
    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        """The untrained network for images of ``(C, H, W)``, its weights drawn from torch's own stream."""

    @abstractmethod
    def optimizers(self, model: nn.Module) -> Sequence[torch.optim.Optimizer]:
        """What trains it."""

    @abstractmethod
    def step(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        images: Tensor,
        generator: torch.Generator,
    ) -> float:
        """One step of the optimizers; returns the loss, of an image.

        Args:
            model: in training mode.
            optimizers: of `optimizers`.
            images: float ``[batch_size, C, H, W]`` in [0, 1].
            generator: of all random draws, so that a resumed training goes on with the same ones.
        """


class OneLossNetwork(Network):
    """A network that one optimizer trains on one loss."""

    @abstractmethod
    def loss(self, model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of an image, a scalar; arguments as of `step`."""

    def step(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        images: Tensor,
        generator: torch.Generator,
    ) -> float:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = self.loss(model, images, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()


class VAENetwork(OneLossNetwork):
    """The variational autoencoder (`workers.models.vae`): RMSprop on the evidence lower bound.

    With a code of 2 the Keras example comes to a loss of 146 to 151 an image on MNIST after its 30 epochs.
    """

    NAME: ClassVar[str] = "vae"

    code_size: int = Field(2, ge=1, le=1024, description="Numbers in the code.")

    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        return VAE(*shape, code_size=self.code_size)

    def optimizers(self, model: nn.Module) -> Sequence[torch.optim.Optimizer]:
        return [torch.optim.RMSprop(model.parameters(), lr=self.learning_rate, alpha=0.9, eps=1e-7)]

    def loss(self, model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(model, VAE)
        return model.loss(images, torch.randn(len(images), self.code_size, generator=generator)).mean()


@dataclass(frozen=True)
class NetworkEpoch:
    """What one epoch came to: its number from 1, and the mean loss of an image."""

    epoch: int
    loss: float


def train_network(
    network: Network, training: Dataset, folder: Path, *, on_batch: Callable[[int, int, float], None]
) -> Iterator[NetworkEpoch]:
    """Trains a network into a folder and yields after each epoch, its checkpoint written.

    A folder that holds some epochs of the same training is resumed, with the losses of an uninterrupted one.

    Args:
        network: what is trained, and how.
        training: the images.
        folder: created when absent.
        on_batch: called after each step with the epoch (from 1), the step (from 1) and its loss.

    Yields:
        Every epoch, those already in the folder first.

    Raises:
        WrongInput: when the folder holds another training, or there are fewer images than a batch has.
    """
    if len(training) < network.batch_size:
        raise WrongInput(f"--batch-size: at most the {len(training)} training images, got {network.batch_size}")
    channels, height, width = training.shape
    card: dict[str, Any] = {
        "architecture": {"network": network.NAME, "channels": channels, "height": height, "width": width},
        "training": network.model_dump(mode="json", exclude={"epochs"}) | {"data": training.content_hash()},
        "data": {"name": training.name, "training_images": len(training)},
        "epochs": [],
    }
    card = same_training(folder, card, network.epochs)
    epochs = card["epochs"]
    yield from (NetworkEpoch(**epoch) for epoch in epochs)
    if len(epochs) == network.epochs:
        return
    with exclusive(folder):
        card = same_training(folder, card, network.epochs)
        with torch.random.fork_rng(devices=[]):  # the layers draw from torch's own stream
            torch.manual_seed(network.seed)
            model = network.build(training.shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizers = network.optimizers(model)
        if card["epochs"]:
            restore(folder, card["weights"], model, optimizers)
        images, generator = torch.tensor(training.images), torch.Generator()
        for number in range(len(card["epochs"]) + 1, network.epochs + 1):
            generator.manual_seed(network.seed * 1_000_003 + number)
            model.train()
            order, losses = torch.randperm(len(images), generator=generator), []
            for step in range(len(images) // network.batch_size):
                chosen = images[order[step * network.batch_size : (step + 1) * network.batch_size]]
                losses.append(network.step(model, optimizers, chosen.float().div(255), generator))
                on_batch(number, step + 1, losses[-1])
            epoch = NetworkEpoch(number, float(np.mean(losses)))
            card["epochs"].append(asdict(epoch))
            save(folder, card, model, optimizers)
            yield epoch
