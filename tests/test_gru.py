"""The recurrence of the lab encoder: PyTorch's, with other gradients of the same value."""

import pytest
import torch
from chiasm.encoders.gru import _Layer, states_of
from torch import Tensor, nn
from torch.testing import assert_close


def run(states: Tensor, gru: nn.GRU, steps: Tensor) -> list[Tensor]:
    """The states, and the gradients of what stands before them."""
    weigh = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    return [states, *torch.autograd.grad((states * weigh).sum(), [steps, *gru.parameters()])]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("count", [1, 5, 16, 40])
def test_states_and_gradients_are_those_of_pytorch(layers, count):
    torch.manual_seed(0)
    gru, steps = nn.GRU(6, 4, layers), torch.randn(count, 3, 6, requires_grad=True)
    for ours, theirs in zip(run(states_of(gru, steps), gru, steps), run(gru(steps)[0], gru, steps), strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_its_gradient_is_that_of_its_states():
    torch.manual_seed(0)
    shapes = [(20, 2, 3), (6, 3), (6,), (6, 2), (6,)]
    assert torch.autograd.gradcheck(
        _Layer.apply, [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    )


def test_steps_whose_rows_do_not_lie_side_by_side_give_the_same():
    torch.manual_seed(0)
    gru, steps = nn.GRU(6, 4), torch.randn(3, 5, 6).transpose(0, 1).requires_grad_()
    for ours, theirs in zip(run(states_of(gru, steps), gru, steps), run(gru(steps)[0], gru, steps), strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_whatever_the_precision_states_are_computed_in_fp32():
    torch.manual_seed(0)
    gru, steps = nn.GRU(6, 4), torch.randn(5, 3, 6).bfloat16().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(states_of(gru, steps.bfloat16()), gru, steps)
    assert ours[0].dtype == torch.float32
    for own, plain in zip(ours, run(states_of(gru, steps), gru, steps), strict=True):
        # What goes back to the steps is rounded to their precision.
        assert_close(own, plain, atol=1e-2 if own.shape == steps.shape else 1e-6, rtol=1e-2)


def test_units_between_layers_are_dropped_in_training_alone():
    torch.manual_seed(0)
    gru, steps = nn.GRU(6, 4, 2, dropout=0.5), torch.randn(5, 3, 6)
    assert not torch.equal(states_of(gru, steps), states_of(gru, steps))
    gru.eval()
    assert torch.equal(states_of(gru, steps), states_of(gru, steps))
