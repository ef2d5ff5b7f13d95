"""What tests of training share: short runs, and weights to compare."""

import torch
from chiasm.encoders import LabEncoder, StaticEncoder
from chiasm.fusion import ConcatenationFusion, FusionModel

# The moving average of weights would hardly have left the start.
SHORT = {"average": 0.0, "progress": False}


def make_model() -> FusionModel:
    """A small one of labs and facts, not yet trained."""
    return FusionModel(
        labs=LabEncoder(8, rare=1),
        static=StaticEncoder(8),
        fusion=ConcatenationFusion(8),
        outcomes={"died": "binary"},
    )


def weights(model: FusionModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
