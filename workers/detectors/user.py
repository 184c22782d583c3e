"""A user's own detector, as ``module:function``."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workers.detectors.detector import Detector, DetectorRecipe
from workers.errors import WrongInput
from workers.models.foreign import OnCopies, prints_aside

__all__ = ["AdaptedDetector", "UserDetector"]


class AdaptedDetector(Detector):
    """What a user's function returned: an object with ``score``, and what else it has of a `Detector`."""

    def __init__(self, classifier: nn.Module, found: Any, function: str) -> None:
        super().__init__(classifier)
        if not callable(getattr(found, "score", None)):
            raise WrongInput(f"{function} must return an object with score(images), got {type(found).__name__}")
        self._function = function
        if isinstance(found, nn.Module):
            self.module = found.eval().requires_grad_(False)
        methods = {name: getattr(found, name, None) for name in ("score", "predict")}
        self._methods = {name: OnCopies(method) for name, method in methods.items() if callable(method)}
        self.noise = getattr(found, "noise", None)
        whole = isinstance(self.noise, tuple) and all(isinstance(size, int) and size > 0 for size in self.noise)
        if self.noise is not None and not whole:
            raise WrongInput(
                f"{function}: noise must be a shape as (2,), of the draws for one image, got {self.noise!r}"
            )
        self.differentiable = bool(getattr(found, "differentiable", True))
        self.repairs = "predict" in self._methods

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        found = self._call("score", images, noise)
        scores = found if isinstance(found, Tensor) else torch.as_tensor(found, dtype=torch.float32)
        if scores.shape != (len(images),):
            raise ValueError(f"{self._function}: score must return [{len(images)}], got {list(scores.shape)}")
        return scores.float().to(images.device)

    def predict(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        if not self.repairs:
            return super().predict(images, noise)
        logits: Tensor = self._call("predict", images, noise)
        return logits

    def writes_to_input(self, images: Tensor, noise: Tensor | None = None) -> bool:
        """Whether scoring changes the images or draws that it is given, which are copies."""
        asked = self._methods["score"]
        asked.wrote = False
        self.score(images, noise)
        wrote, asked.wrote = asked.wrote, None
        return wrote

    def _call(self, method: str, images: Tensor, noise: Tensor | None) -> Any:
        given = (images,) if self.noise is None else (images, noise)
        return self._methods[method](*given)


class UserDetector(DetectorRecipe):
    """``package.module:function``: called with the classifier, it returns an object with ``score(images) -> [n]``.

    Images are float ``[n, C, H, W]`` in [0, 1], copies that it may write to; the object may also have
    ``predict(images) -> logits``, say ``differentiable = False``, and say ``noise = (shape,)`` to be given normal draws
    ``[n, *shape]`` behind the images.
    Of an ``nn.Module`` the weights travel with it.
    """

    NAME: ClassVar[str] = "user"

    function: str

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> Detector:
        from workers.models.loading import user_function

        try:
            function = user_function(self.function)
            with prints_aside():
                found = function(classifier)
        except WrongInput as error:
            raise WrongInput(str(error).removeprefix("--model ")) from None
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            raise WrongInput(f"{self.function}: {type(error).__name__}: {error}") from None
        return AdaptedDetector(classifier, found, self.function)
