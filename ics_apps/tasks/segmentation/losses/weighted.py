"""The base of losses with one weight a class. What the weights do is said by each loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ics_apps.tasks.segmentation.losses.regions import as_float, check_weights, weight_tensor


class ClassWeighted(nn.Module):
    """A loss of logits and target whose classes may weigh differently.

    Args:
        class_weights: One value >= 0 for each channel of the logits, the background included; None: all alike.

    Raises:
        ValueError: A weight is negative, all are 0, or (in the first step) their number is not that of the channels.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        # Not persistent: weights belong to the recipe, and a checkpoint stays loadable when they change.
        self.register_buffer("class_weights", weight_tensor(class_weights), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        logits = as_float(logits)
        check_weights(self.class_weights, logits.shape[1])
        return self.loss(logits, target)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of checked logits in float32."""
        raise NotImplementedError
