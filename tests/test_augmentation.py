"""What is varied in training leaves a patient's meaning, and never leaves nothing."""

import pytest
import torch
from chiasm.datasets import InputError
from chiasm.datasets.batch import Labs
from chiasm.encoders import LabAugmentation, LabEncoder, NoteEncoder
from chiasm.encoders.augmentation import (
    drop_measurements,
    hide_sentences,
    hide_words,
    jitter_images,
    jitter_values,
    sentence_marks,
    shift_series,
)
from torch.testing import assert_close


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


def test_images_are_moved_in_full_precision_whatever_that_of_the_network():
    images = torch.rand(2, 1, 224, 224)
    torch.manual_seed(0)
    moved = jitter_images(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(jitter_images(images), moved)


def test_the_mean_share_of_dropped_measurements_is_as_asked():
    torch.manual_seed(0)
    part = series(*[list(range(50))] * 600)
    left = drop_measurements(part, 0.2, 600)
    # Shares are uniform on [0, 0.4]: over 600 patients their mean has a standard error of 0.005.
    assert len(left.patient) / len(part.patient) == pytest.approx(0.8, abs=0.02)


def test_jitter_has_the_deviation_that_was_asked_for_and_spares_the_median():
    torch.manual_seed(0)
    part = series([0] * 20_000)._replace(value=torch.arange(20_000) % 2 * 1.5)
    error = jitter_values(part, 0.2).value - part.value
    assert not error[::2].any()
    # 10,000 draws: four standard errors of a mean are 0.008, of a deviation 0.006.
    assert error[1::2].mean().item() == pytest.approx(0, abs=0.008)
    assert error[1::2].std().item() == pytest.approx(0.2, abs=0.006)


def test_a_series_is_moved_as_a_whole_and_never_past_the_prediction():
    torch.manual_seed(0)
    part = series(*[[0, 3, 9]] * 500, *[[8, 10]] * 500)
    moved = shift_series(part, 4.0, 1000)
    shift = (moved.hours - part.hours)[:1500].view(500, 3)
    assert_close(shift, shift[:, :1].expand(-1, 3))
    # The last measurement is an hour old, so that what is drawn above 1 becomes 1: three shifts of eight.
    assert shift.min() >= -4
    assert (shift[:, 0] > 1 - 1e-5).float().mean().item() == pytest.approx(3 / 8, abs=0.09)
    # That of the others is at the prediction time: they move back, or stay.
    other = (moved.hours - part.hours)[1500:]
    assert (other == 0).float().mean().item() == pytest.approx(0.5, abs=0.09)
    assert (moved.hours <= 0).all()
    assert moved.hours.max() == 0


def test_what_is_off_leaves_the_series_and_the_random_numbers_as_they_are():
    part, state = series([0, 1], [2]), torch.get_rng_state()
    assert LabAugmentation(dropped=0.0)(part, 2) is part
    assert torch.equal(torch.get_rng_state(), state)


def test_varied_series_are_repeated_by_their_seed_and_told_by_the_description():
    encoder = LabEncoder(augmentation=LabAugmentation(dropped=0.2, jitter=0.1, shift=2.0))
    assert LabEncoder(**encoder.describe()["settings"]).augmentation == encoder.augmentation
    part, varied = series([0, 1, 1, 2], [2, 3]), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        varied.append(encoder.augmentation(part, 2).value.tolist())
    assert varied[0] == varied[1] != varied[2]


WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, ".": 3, "5": 4, "fever": 5, "##.": 6, "Ġ?": 7, "Ċ": 8, "▁12": 9, "?!": 10}


def test_sentence_ends_and_digits_are_known_in_every_kind_of_vocabulary():
    ends, digits = sentence_marks(WORDS)
    assert ends.nonzero().flatten().tolist() == [3, 6, 7, 8]
    assert digits.nonzero().flatten().tolist() == [4, 9]


def test_about_the_share_of_sentences_is_hidden_each_as_a_whole_and_never_all():
    torch.manual_seed(0)
    # Four sentences of three words, the first with a mark in front and the last with one behind; then padding.
    tokens = torch.tensor([1, *[5, 5, 3] * 4, 2, 0, 0]).expand(3000, -1)
    real, ends = tokens > 0, sentence_marks(WORDS)[0][tokens]
    seen = hide_sentences(real, ends, 0.3)
    assert seen[:, 0].all()
    assert not seen[:, 14:].any()
    sentences = seen[:, 1:13].view(3000, 4, 3)
    assert (sentences.all(2) == sentences.any(2)).all()
    assert torch.equal(seen[:, 13], seen[:, 12])
    assert sentences.any(2).any(1).all()
    # All four would be hidden in 0.81 % of the pieces, where one stays; four standard errors are 0.017.
    assert sentences.float().mean().item() == pytest.approx(0.7 + 0.0081 / 4, abs=0.017)
    alone = hide_sentences(real[:, :4], ends[:, :4], 0.99)
    assert torch.equal(alone, real[:, :4])


def test_a_decimal_point_ends_no_sentence(cohort):
    encoder = NoteEncoder(word_dropout=0.0, sentence_dropout=0.9)
    encoder.reader.fit(cohort.with_tables("numbers", notes=cohort.notes.assign(text="lactate 9.5 . fever . cough .")))
    encoder._mark_sentences()
    number = encoder.reader.tokenizer_.encode("9.5 . fever").ids
    words = torch.tensor(number).expand(200, -1)
    torch.manual_seed(0)
    seen = encoder._varied(words, torch.ones_like(words, dtype=torch.bool))
    # The number and its full stop are one sentence.
    assert torch.equal(seen[:, 1:5].any(1), seen[:, 1:5].all(1))
    assert not seen.all()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        *(({"dropped": share}, "dropped is .*; expected a share") for share in (-0.1, 0.5, float("nan"))),
        *(({"jitter": size}, "jitter is .*; expected standard deviations") for size in (-0.1, 1.1, float("nan"))),
        *(({"shift": hours}, "shift is .*; expected a number of hours") for hours in (-1.0, float("inf"))),
    ],
)
def test_varying_series_out_of_range_is_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        LabAugmentation(**wrong)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("name", ["word_dropout", "sentence_dropout"])
def test_a_share_of_words_or_sentences_out_of_range_is_refused(name, share):
    with pytest.raises(InputError, match=rf"{name} is .*; expected a share from 0 to below 1"):
        NoteEncoder(**{name: share})
