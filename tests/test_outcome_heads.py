"""The laws of outcome heads: losses by hand, silence about what is unknown, risks in their own unit."""

import numpy as np
import pytest
import torch
from chiasm.datasets import OutcomeKind
from chiasm.fusion.outcome_heads import OutcomeHeads
from chiasm.fusion.state import FusedState
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.testing import assert_close

KINDS = {
    "died": OutcomeKind("binary"),
    "stage": OutcomeKind("categorical", ["mild", "severe", "critical"]),
    "days": OutcomeKind("continuous"),
}
WIDTH = 8
PATIENTS = 40


def _shares(logits: torch.Tensor) -> np.ndarray:
    """Probabilities in float64, as scikit-learn wants them."""
    return logits.double().softmax(-1).numpy()


@pytest.fixture
def labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Outcomes, and which of them are known; NaN where they are not."""
    random = np.random.default_rng(0)
    died = random.random(PATIENTS) < 0.3
    stage = random.choice(3, PATIENTS, p=[0.6, 0.3, 0.1])
    values = np.stack([died, stage, random.gamma(2, 4, PATIENTS)], 1).astype(np.float32)
    known = random.random(values.shape) < 0.7
    values[~known] = np.nan
    return torch.from_numpy(values), torch.from_numpy(known)


@pytest.fixture
def heads(labels) -> OutcomeHeads:
    torch.manual_seed(0)
    made = OutcomeHeads(KINDS, WIDTH)
    made.fit_scales(*labels, balanced=False)
    return made


@pytest.fixture
def state() -> FusedState:
    return FusedState(torch.randn(PATIENTS, 3, WIDTH, generator=torch.Generator().manual_seed(1)))


def test_columns_are_one_an_outcome_and_one_a_class(heads, state):
    assert heads.columns == ("died", "stage=mild", "stage=severe", "stage=critical", "days")
    risk = heads(state)
    assert risk.logits.shape == risk.value.shape == (PATIENTS, 5)


def test_risks_are_probabilities_and_values_in_their_own_unit(heads, state, labels):
    with torch.no_grad():
        risk = heads(state)
    values, known = labels
    days = values[known[:, 2], 2].double()
    logits = risk.logits.double()
    assert_close(risk.value[:, 0].double(), 1 / (1 + torch.exp(-logits[:, 0])), atol=1e-6, rtol=1e-5)
    odds = logits[:, 1:4].exp()
    assert_close(risk.value[:, 1:4].double(), odds / odds.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)
    expected = logits[:, 4] * days.std(correction=0) + days.mean()
    assert_close(risk.value[:, 4].double(), expected, atol=1e-4, rtol=1e-5)


def test_the_loss_is_that_of_scikit_learn_over_what_is_known(heads, state, labels):
    values, known = labels
    with torch.no_grad():
        risk = heads(state)
        loss, count = heads.loss(risk.logits, values, known)
    died, stage, days = (known[:, i].numpy() for i in range(3))
    expected = log_loss(values[died, 0], risk.value[died, 0].double(), labels=[0, 1], normalize=False)
    expected += log_loss(values[stage, 1], _shares(risk.logits[stage, 1:4]), labels=[0, 1, 2], normalize=False)
    z = (values[days, 2] - values[days, 2].mean()) / values[days, 2].std(correction=0)
    expected += 0.5 * (risk.logits[days, 4] - z).square().sum().item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert count == known.sum()


def test_a_smoothed_label_counts_in_part_for_every_class_and_a_number_as_it_is(heads, state, labels):
    values, known = labels
    with torch.no_grad():
        logits = heads(state).logits
        smoothed, count = heads.loss(logits, values, known, smoothing=0.2)
        # As many losses as there are classes, each as if its class were the label.
        plain = heads.loss(logits, values, known)[0]
        classes = [
            heads.loss(logits, torch.full_like(values, label), known & (torch.arange(3) == i))[0]
            for i, label in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))
        ]
        days = heads.loss(logits, values, known & (torch.arange(3) == 2))[0]
    expected = 0.8 * (plain - days) + 0.2 * (sum(classes[:2]) / 2 + sum(classes[2:]) / 3) + days
    assert smoothed.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count == known.sum()


def test_balanced_losses_weigh_classes_as_scikit_learn_does(state, labels):
    values, known = labels
    torch.manual_seed(0)
    heads = OutcomeHeads(KINDS, WIDTH)
    heads.fit_scales(values, known, balanced=True)
    for i, classes in ((0, 2), (1, 3)):
        own = values[known[:, i], i].numpy().astype(int)
        expected = compute_class_weight("balanced", classes=np.arange(classes), y=own)
        assert_close(heads.class_weight[i, :classes].numpy(), expected.astype(np.float32))
    only = torch.zeros_like(known)
    only[:, 1] = known[:, 1]
    with torch.no_grad():
        risk = heads(state)
        loss, _ = heads.loss(risk.logits, values, only)
    own = values[only[:, 1], 1].long()
    expected = log_loss(
        own,
        _shares(risk.logits[only[:, 1], 1:4]),
        labels=[0, 1, 2],
        normalize=False,
        sample_weight=heads.class_weight[1][own].numpy(),
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_what_is_unknown_adds_nothing_to_loss_nor_gradient(heads, state, labels):
    values, known = labels
    logits = heads(state).logits.detach().requires_grad_()
    loss, count = heads.loss(logits, values, known)
    loss.backward()
    unknown = torch.repeat_interleave(~known, torch.tensor([1, 3, 1]), 1)
    assert not logits.grad[unknown].any()
    assert logits.grad[~unknown].all()
    for stand_in in (0.0, 1.0, 2.0, torch.inf):
        again, same = heads.loss(logits, torch.where(known, values, stand_in), known)
        assert again == loss
        assert same == count


def test_a_batch_of_which_no_outcome_is_known_has_no_loss_and_a_finite_gradient(heads, state, labels):
    values, known = labels
    loss, count = heads.loss(heads(state).logits, values, torch.zeros_like(known))
    loss.backward()
    assert loss == 0
    assert count == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in heads.parameters())


@pytest.mark.parametrize("balanced", [False, True])
def test_training_starts_from_the_rate_of_each_class_or_from_even_odds(labels, balanced):
    values, known = labels
    heads = OutcomeHeads(KINDS, WIDTH)
    heads.fit_scales(values, known, balanced=balanced)
    # A state of zeros leaves nothing but the bias.
    with torch.no_grad():
        risk = heads(FusedState(torch.zeros(1, 3, WIDTH))).value[0]
    died, stage, days = (values[known[:, i], i] for i in range(3))
    rate = [0.5] if balanced else [died.mean().item()]
    shares = [1 / 3] * 3 if balanced else [(stage == k).float().mean().item() for k in range(3)]
    assert risk.tolist() == pytest.approx([*rate, *shares, days.mean().item()], rel=1e-4)


def test_a_class_that_no_training_patient_had_starts_rare_and_not_impossible():
    heads = OutcomeHeads({"stage": KINDS["stage"]}, WIDTH)
    heads.fit_scales(torch.tensor([[0.0], [0], [1], [1]]), torch.ones(4, 1, dtype=torch.bool), balanced=False)
    with torch.no_grad():
        risk = heads(FusedState(torch.zeros(1, 1, WIDTH))).value[0]
    # Shares of 2, 2 and half a patient of four and a half.
    assert risk.tolist() == pytest.approx([2 / 4.5, 2 / 4.5, 0.5 / 4.5], rel=1e-4)


def test_an_outcome_of_which_nothing_is_known_leaves_the_scales_as_they_are():
    heads = OutcomeHeads(KINDS, WIDTH)
    heads.fit_scales(torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bool), balanced=True)
    assert all(value.isfinite().all() for value in heads.state_dict().values())
    assert heads.std.tolist() == [1, 1, 1]


def test_values_that_are_all_equal_have_a_scale_above_zero():
    heads = OutcomeHeads({"days": KINDS["days"]}, WIDTH)
    heads.fit_scales(torch.full((4, 1), 7.0), torch.ones(4, 1, dtype=torch.bool), balanced=False)
    assert heads.mean.item() == 7
    assert heads.std.item() > 0


def test_heads_give_float32_in_any_precision(heads, state):
    with torch.autocast("cpu", torch.bfloat16):
        half = heads(FusedState(state.values.bfloat16()))
        whole = heads(state)
    assert half.logits.dtype == half.value.dtype == whole.logits.dtype == torch.float32
    assert torch.equal(whole.logits, heads(state).logits)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_not_finite_gives_no_risk(heads, wrong):
    values = torch.zeros(2, 3, WIDTH)
    with torch.no_grad():
        for i in range(3):
            heads.heads[i].bias[:] = torch.tensor([wrong, 0.0, 0.0])[: len(heads.heads[i].bias)]
        risk = heads(FusedState(values))
    assert risk.value.isnan().all()
