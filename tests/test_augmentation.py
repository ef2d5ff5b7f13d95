"""What is varied in training leaves a patient's meaning, and never leaves nothing."""

import pytest
import torch
from chiasm.datasets import InputError
from chiasm.datasets.batch import Labs
from chiasm.encoders import LabEncoder, NoteEncoder
from chiasm.encoders.augmentation import drop_measurements, hide_words


def series(*steps: list[int]) -> Labs:
    """One patient a list; the numbers are the time steps of its measurements."""
    patient = torch.tensor([number for number, own in enumerate(steps) for _ in own])
    step = torch.tensor([one for own in steps for one in own])
    value = torch.arange(len(step), dtype=torch.float32)
    return Labs(patient=patient, hours=-10.0 + step, code=step % 2, value=value, step=step)


def test_about_the_share_of_words_is_hidden_and_never_the_first_nor_padding():
    torch.manual_seed(0)
    real = torch.ones(400, 50, dtype=torch.bool)
    real[:, 40:] = False
    seen = hide_words(real, 0.3)
    assert seen[:, 0].all()
    assert not seen[:, 40:].any()
    # 15,600 draws: four standard errors are 0.015.
    assert seen[:, 1:40].float().mean().item() == pytest.approx(0.7, abs=0.015)


def test_every_series_keeps_a_measurement_and_its_steps_stay_dense_and_in_order():
    torch.manual_seed(0)
    part = series([0, 0, 1, 2, 2, 3], [0], [0, 1, 1, 2])
    for _ in range(50):
        left = drop_measurements(part, 0.45, 3)
        assert left.patient.unique().tolist() == [0, 1, 2]
        for patient in range(3):
            steps = left.step[left.patient == patient]
            assert steps.unique().tolist() == list(range(int(steps.max()) + 1))
            assert (steps.diff() >= 0).all()
        # What is left are rows of the whole, moved together.
        rows = left.value.long()
        assert torch.equal(left.hours, part.hours[rows])
        assert torch.equal(left.code, part.code[rows])


def test_the_mean_share_of_dropped_measurements_is_as_asked():
    torch.manual_seed(0)
    part = series(*[list(range(50))] * 600)
    left = drop_measurements(part, 0.2, 600)
    # Shares are uniform on [0, 0.4]: over 600 patients their mean has a standard error of 0.005.
    assert len(left.patient) / len(part.patient) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("share", [-0.1, 0.5, float("nan")])
def test_a_share_of_measurements_out_of_range_is_refused(share):
    with pytest.raises(InputError, match=r"measurement_dropout is .*; expected a share from 0 to below 0.5"):
        LabEncoder(measurement_dropout=share)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_words_out_of_range_is_refused(share):
    with pytest.raises(InputError, match=r"word_dropout is .*; expected a share from 0 to below 1"):
        NoteEncoder(word_dropout=share)
