"""What tests of training share: short runs, and weights to compare."""

import torch
from chiasm.fusion import FusionModel

# The moving average of weights would hardly have left the start.
SHORT = {"average": 0.0, "progress": False}


def weights(model: FusionModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
