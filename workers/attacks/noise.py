"""Random images of the ball: what every search within it has to beat."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from workers.attacks.norm_ball import NormBallAttack
from workers.losses import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from workers.search import Batch

__all__ = ["Noise"]


class Noise(NormBallAttack):
    """Independent random images of the ball; no image depends on the answers to those before it.

    L∞: in turn a uniform draw from the ball and one of its corners, every feature of the clean image ± ⌊255ε⌋ levels.
    L2: a uniform draw from the sphere of radius ε. Then clipped to 0 to 255. The first success ends an image; without
    one the image of the highest loss is kept.
    """

    NAME: ClassVar[str] = "noise"

    max_queries: int = Field(20, ge=1, description="Most queries an image, a random image each.")
    loss: Loss = Field("margin", description="Which image is kept: of the highest cross-entropy, margin or dlr.")

    def _search(self, batch: "Batch") -> None:
        import torch

        rows, clean, streams = batch.all_rows, batch.images.float(), batch.draws(batch.all_rows)
        loss = torch.full(rows.shape, -torch.inf, device=rows.device)
        for query in range(self.max_queries):
            images = self.ball.rounded(self.drawn(query, clean, streams), clean)
            logits = batch.logits(images, rows)
            found, reached = batch.goal.loss(self.loss, logits, rows), batch.goal.reached(logits, rows)
            better = (found > loss) | reached
            loss = found.where(better, loss)
            batch.adversarial[rows[better]] = images[better]
            batch.generations[rows] += 1
            if bool(reached.any()):
                going = ~reached
                rows, clean, loss = rows[going], clean[going], loss[going]
                if not len(rows):
                    return
                streams = [stream for stream, stay in zip(streams, going.tolist(), strict=True) if stay]

    def drawn(self, query: int, clean: "Tensor", streams: Sequence[np.random.Generator]) -> "Tensor":
        """The random images ``[n, C, H, W]`` of a query, one stream an image; in levels, within 0 to 255."""
        import torch

        if self.norm == "linf" and not query % 2:
            return self.random_start(clean, streams)
        normal = np.stack([stream.standard_normal(clean.shape[1:], dtype=np.float32) for stream in streams])
        change = self.steepest(torch.from_numpy(normal).to(clean.device))
        return self.ball.project(clean + self.ball.radius * change, clean)
