"""Plain training of another architecture."""

from typing import Any, ClassVar

from workers.training.plain import Plain

__all__ = ["Perceptron"]


class Perceptron(Plain):
    """No defense, and a multilayer perceptron in place of the CNN."""

    NAME: ClassVar[str] = "perceptron"

    def architecture(self, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
        return super().architecture(shape, classes) | {"name": "mlp"}
