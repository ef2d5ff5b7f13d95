"""Sentences that tell the outcome leave the notes, whole, counted, and nothing else changes."""

import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.leakage import OUTCOME_TEXT, names_later_day, remove_outcome_text, sentences

TELLING = [
    "He was admitted to the ICU.",
    "Transfer to intensive care on arrival.",
    "She stayed on the Intensive-Care unit.",
    "Admited to ITU.",
    "Patient intubated and mechanically ventilated.",
    "He was not intubated.",
    "Necessitated re-intubation.",
    "Extubated this morning.",
    "Non-ventilated so far.",
    "ECMO was considered.",
    "Impending need of extracorporeal membrane oxygenation.",
    "Tracheostomy in place.",
    "The endotracheal tube is just above the carina.",
    "ET tube and lines suitably sited.",
    "Bilateral opacities, tracheal cannula.",
    "The patient died a day after the last x-ray.",
    "Postmortem radiography.",
    "Deceased.",
    "She expired at noon.",
    "There were no survivors.",
    "The patient was discharged one week after admission.",
    "The patient made a recovery.",
    "A favourable course.",
    "An unfavorable clinical evolution.",
    "He continued to deteriorate.",
    "Three days later there was more opacity.",
    "Fever continued over the next 4 days.",
    "He subsequently developed a dry cough.",
    "The patient still needs supportive care measures.",
]
SILENT = [
    "Temperature 38.5 with a productive cough.",
    "Overlapping signs of dysventilation in the left lower lobe.",
    "Purulent nasal discharge for a week.",
    "Low oxygen saturation (SpO2 89%) on arrival.",
    "Chronic end-stage renal failure.",
    "He was referred to the emergency department for dyspnoea.",
    "Lungs clear, heart of normal size.",
    "Radiological worsening with consolidation in the left upper lobe.",
    "Difficulty in breathing.",
]


@pytest.mark.parametrize("sentence", TELLING)
def test_a_sentence_that_tells_the_outcome_goes_in_any_case_and_leaves_its_neighbours(sentence):
    for text in (sentence, sentence.upper(), sentence.lower()):
        cleaned, report = remove_outcome_text(pd.Series([f"Fever and cough. {text} Lungs clear."]))
        assert cleaned.tolist() == ["Fever and cough. Lungs clear."]
        assert (report.touched, report.removed, report.emptied) == (1, 1, 0)


@pytest.mark.parametrize("sentence", SILENT)
def test_what_describes_the_patient_at_the_moment_stays_as_it_was_written(sentence):
    text = f"Cough.  {sentence}\n\nFever. "
    cleaned, report = remove_outcome_text(pd.Series([text]))
    assert cleaned.tolist() == [text]
    assert (report.touched, report.removed, report.share_of_characters) == (0, 0, 0)


def test_every_topic_removes_some_sentence_of_its_own():
    for topic, expressions in OUTCOME_TEXT.items():
        _, report = remove_outcome_text(pd.Series(TELLING), {topic: expressions})
        assert 0 < report.removed < len(TELLING)


def test_sentences_end_neither_in_decimals_nor_after_abbreviations():
    text = (
        "Seen by Dr. A. Roe, temp. 38.5 (Fig. 2). CRP 19.69 mg/dL, e.g. raised vs. before! Well?\nHome.Then cough.. End"
    )
    assert [part.strip() for part in sentences(text)] == [
        "Seen by Dr. A. Roe, temp. 38.5 (Fig. 2).",
        "CRP 19.69 mg/dL, e.g. raised vs. before!",
        "Well?",
        "Home.",
        "Then cough..",
        "End",
    ]


@pytest.mark.parametrize("text", ["", "  ", ". . .", "No stop", "A. B. C.", "x.\n\n\ny", "Ends. ", "\nStarts. a"])
def test_joined_sentences_are_the_text_again(text):
    assert "".join(sentences(text)) == text


def test_a_long_run_of_white_space_is_split_in_no_time():
    text = "fever." + " " * 200_000 + "cough"
    assert len(sentences(text)) == 2


def test_counts_are_those_of_a_hand_count():
    notes = pd.Series(["Fever. Intubated in the ICU. Died.", "Died.", "Cough."])
    cleaned, report = remove_outcome_text(notes)
    assert cleaned.to_dict() == {0: "Fever.", 2: "Cough."}
    assert (report.notes, report.touched, report.emptied, report.sentences, report.removed) == (3, 2, 1, 5, 3)
    assert report.share_of_characters == pytest.approx(1 - 12 / 45)
    by_topic = report.by_topic.set_index("topic")
    assert by_topic.loc["death"].tolist() == [2, 2]
    assert by_topic.loc["intensive care"].tolist() == [1, 1]
    assert by_topic.loc["ventilation"].tolist() == [1, 1]
    assert "3 of 5 sentences" in str(report)


def test_the_report_holds_counts_and_no_text():
    _, report = remove_outcome_text(pd.Series(["Mrs. Zyx was admitted to the ICU.", "Zyx, cough."]))
    assert "Zyx" not in f"{report} {report!r} {report.by_topic.to_string()}"


def test_cleaning_twice_changes_nothing_more_and_the_input_stays():
    notes = pd.Series(["Fever. Intubated.", "Cough. Later discharged home."])
    before = notes.copy()
    once, _ = remove_outcome_text(notes)
    twice, report = remove_outcome_text(once)
    pd.testing.assert_series_equal(once, twice)
    assert report.removed == 0
    pd.testing.assert_series_equal(notes, before)


def test_a_table_of_notes_keeps_its_columns_and_loses_empty_notes():
    day = pd.Timestamp("2030-01-02")
    notes = pd.DataFrame({"subject_id": [1, 2], "time": day, "text": ["Cough. Intubated.", "In ICU."], "kind": "chest"})
    outcomes = pd.DataFrame({"subject_id": [1, 2], "prediction_time": day, "icu": [0, 1]})
    cohort = Cohort(outcomes, notes=notes)
    cleaned, report = remove_outcome_text(cohort.notes)
    cohort = cohort.with_tables(str(report), notes=cleaned)
    assert cohort.notes.to_dict("list") == {"subject_id": [1], "time": [day], "text": ["Cough."], "kind": ["chest"]}
    assert cohort.has_input()["notes"].tolist() == [True, False]


def test_no_notes_at_all_are_no_error():
    cleaned, report = remove_outcome_text(pd.Series([], dtype="str"))
    assert len(cleaned) == 0
    assert report.share_of_characters == 0


@pytest.mark.parametrize(
    ("sentence", "day", "later"),
    [
        ("CT on day 11 and day 17 after onset.", 11, True),
        ("CT on day 11 and day 17 after onset.", 17, False),
        ("Intubated on the 7th day.", 6, True),
        ("Note progression on day seven.", 3, True),
        ("Chest x-ray on the eighth day.", 8, False),
        ("Three days of fever, day and night.", 0, False),
        ("Sat 95% on room air, 12 days of cough.", 0, False),
    ],
)
def test_a_day_after_the_image_is_told_from_one_before(sentence, day, later):
    assert names_later_day(sentence, day) is later


def test_patterns_of_ones_own_take_the_place_of_the_list():
    cleaned, _ = remove_outcome_text(pd.Series(["In ICU. Stroke."]), {"stroke": [r"\bstroke\b"]})
    assert cleaned.tolist() == ["In ICU."]


@pytest.mark.parametrize(
    ("notes", "patterns", "message"),
    [
        (pd.DataFrame({"note": ["x"]}), OUTCOME_TEXT, "lack the column text; they have note"),
        (pd.Series(["x", None], dtype=object), OUTCOME_TEXT, "data row 2: text is NoneType"),
        (pd.Series(["x"]), {"death": "died"}, "patterns of 'death' must be a list"),
        (pd.Series(["x"]), {"death": []}, "with at least one"),
        (pd.Series(["x"]), {"death": ["("]}, "pattern of 'death' is not a regular expression"),
    ],
)
def test_what_cannot_be_cleaned_is_refused_with_a_remedy(notes, patterns, message):
    with pytest.raises(InputError, match=message):
        remove_outcome_text(notes, patterns)
