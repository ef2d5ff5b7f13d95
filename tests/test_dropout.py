"""Dropout with cheap random numbers does what PyTorch's does."""

import pytest
import torch
from chiasm.encoders.dropout import Dropout


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_so_many_are_dropped_and_what_stays_makes_up_for_it(p):
    torch.manual_seed(0)
    count = 200_001
    dropped = Dropout(p)(torch.ones(count))
    # Four standard errors of a share.
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / count) ** 0.5)
    # The probability is rounded to a multiple of 1 / 65536.
    assert dropped.max().item() == pytest.approx(1 / (1 - p), abs=2e-5 / (1 - p) ** 2)
    assert dropped.unique().numel() == 2


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    stays = (Dropout(0.5)(torch.ones(80_000)) > 0).view(-1, 4).float()
    # 20,000 draws: four standard errors of a correlation are 0.03.
    assert (stays.T.corrcoef() - torch.eye(4)).abs().max() < 0.03


def test_a_seed_repeats_it_and_the_next_draw_is_another():
    layer, values = Dropout(0.3), torch.randn(7, 11, 3)
    torch.manual_seed(0)
    first, second = layer(values), layer(values)
    torch.manual_seed(0)
    assert torch.equal(layer(values), first)
    assert not torch.equal(first, second)


def test_it_draws_where_the_values_are_whatever_the_default_device():
    values = torch.ones(9)
    with torch.device("meta"):
        dropped = Dropout(0.5)(values)
    assert dropped.device.type == "cpu"


def test_gradients_pass_where_values_do():
    torch.manual_seed(0)
    values = torch.randn(3, 50).T.requires_grad_()
    dropped = Dropout(0.4)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad * values, dropped)


def test_nothing_is_dropped_or_drawn_in_evaluation_or_without_a_probability():
    values, state = torch.randn(5), torch.get_rng_state()
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0)(values) is values
    assert torch.equal(torch.get_rng_state(), state)


def test_it_takes_any_precision_and_nothing_at_all_and_stays_finite():
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        assert Dropout(0.5)(torch.ones(9, dtype=kind)).dtype == kind
    assert Dropout(0.5)(torch.ones(4, 0, 3)).shape == (4, 0, 3)
    assert Dropout(1 - 1e-9)(torch.ones(9)).isfinite().all()
