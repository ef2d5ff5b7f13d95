"""A synthetic patient's chart: laboratory and vital-sign series, and notes, as a ward would leave them."""

from typing import NamedTuple

import numpy as np


class Analyte(NamedTuple):
    """How one quantity behaves: value = median · exp(patient + renal + trend + noise)."""

    unit: str
    median: float
    spread: float
    """Between patients, standard deviation of the logarithm."""
    noise: float
    """Within a patient, standard deviation of the logarithm."""
    every: float
    """Mean hours between two draws."""
    digits: int
    renal: float = 0.0
    """Change of the logarithm per standard deviation of renal impairment."""
    bedside: bool = False
    """Read at the bedside, so available when taken."""


ANALYTES = {
    "creatinine": Analyte("umol/L", 95.0, 0.0, 0.05, 12, 0, renal=0.45),
    "urea": Analyte("mmol/L", 7.0, 0.25, 0.08, 16, 1, renal=0.20),
    "potassium": Analyte("mmol/L", 4.2, 0.06, 0.04, 12, 1, renal=0.03),
    "sodium": Analyte("mmol/L", 138.0, 0.02, 0.01, 12, 0),
    "haemoglobin": Analyte("g/L", 118.0, 0.14, 0.03, 16, 0),
    "leukocytes": Analyte("10^9/L", 9.5, 0.35, 0.10, 16, 1),
    "platelets": Analyte("10^9/L", 230.0, 0.30, 0.06, 16, 0),
    "crp": Analyte("mg/L", 60.0, 0.40, 0.08, 9, 1),
    "lactate": Analyte("mmol/L", 1.5, 0.30, 0.12, 12, 1),
    "glucose": Analyte("mmol/L", 7.0, 0.25, 0.15, 8, 1),
    "heart_rate": Analyte("1/min", 84.0, 0.15, 0.06, 5, 0, bedside=True),
    "temperature": Analyte("Cel", 37.2, 0.012, 0.006, 6, 1, bedside=True),
}
"""Units are UCUM codes, except 10^9/L, which laboratories print so (UCUM: 10*9/L)."""

SPAN_HOURS = (40.0, 72.0)
"""How long before the prediction time a series begins: uniform between these."""

TREND_PER_DAY = (0.6, 1.0)
"""Change of log CRP a day, up or down: a doubling or halving in 17 to 28 h, as seen in infection."""

RESULT_HOURS = (0.5, 2.0)
"""From the draw of a blood sample to its result."""

LATER_LABS_RATE = 0.4
"""Share of patients whose file holds lab results after the prediction time."""

PRESENT = (
    "Known congestive heart failure.",
    "History of heart failure, on furosemide.",
    "Chronic heart failure, NYHA class III.",
    "Known HFrEF, ejection fraction 30 percent.",
    "Chronic left ventricular failure, on furosemide.",
    "Previously admitted with decompensated CHF.",
    "Cardiac failure with reduced ejection fraction, NYHA class II.",
    "CHF since 2015, on sacubitril and furosemide.",
)
ABSENT = (
    "No history of heart failure.",
    "Denies heart failure.",
    "Never had cardiac failure.",
    "No known CHF.",
    "Heart failure excluded by normal echocardiogram.",
    "Echocardiogram normal, no HFrEF.",
    "Denies any history of congestive heart failure.",
    "Normal ejection fraction, no left ventricular failure.",
)
IRRELEVANT = (
    "No history of diabetes.",
    "History of asthma in childhood.",
    "Known hypertension.",
    "Denies alcohol.",
    "Never smoked.",
    "Smoked for twenty years.",
    "Allergic to penicillin.",
    "No known allergies.",
    "Previously admitted with a hip fracture.",
    "Lives alone on the second floor.",
    "Family visited today.",
    "Slept well.",
    "Bowel sounds normal.",
    "Physiotherapy started.",
    "Chronic back pain, on paracetamol.",
    "Cough and fever for three days.",
)

UNMENTIONED_RATE = 0.2
"""Share of the notes of patients without heart failure that say nothing of it (the rest deny it)."""


def _pick(generator: np.random.Generator, phrases: tuple[str, ...], count: int) -> list[str]:
    return [phrases[place] for place in generator.choice(len(phrases), count, replace=False)]


def draw_labs(generator: np.random.Generator, *, renal: float, rising: bool, died: bool) -> dict[str, np.ndarray]:
    """Draw one patient's series.

    CRP rises or falls about a level that says nothing of its direction. What comes after the
    prediction time gives the outcome away (a lactate of the dying), so reading it is noticed.

    Args:
        generator: source of randomness.
        renal: renal impairment in standard deviations, 0 = average; carried by creatinine.
        rising: whether CRP rises (else it falls).
        died: the outcome, seen only in draws after the prediction time.

    Returns:
        Columns `hours` (of the draw, relative to the prediction time), `available` (hours at which
        the result was known), `code`, `value` and `unit`, sorted by `hours`.
    """
    span = generator.uniform(*SPAN_HOURS)
    slope = generator.uniform(*TREND_PER_DAY) / 24 * (1 if rising else -1)
    hours, values, codes = [], [], []
    for code, analyte in ANALYTES.items():
        draws = max(3, round(span / analyte.every))
        moments = -span + (np.arange(draws) + generator.random(draws)) * span / draws
        patient = analyte.spread * np.clip(generator.standard_normal(), -2.5, 2.5)
        course = analyte.renal * renal + patient + analyte.noise * generator.standard_normal(draws)
        if code == "crp":
            course = course + slope * (moments + span / 2)
        hours.append(moments)
        values.append(np.round(analyte.median * np.exp(course), analyte.digits))
        codes += [code] * draws
    if generator.random() < LATER_LABS_RATE:
        draws = int(generator.integers(1, 4))
        hours.append(generator.uniform(1, 36, draws))
        values.append(np.round((8.0 if died else 1.2) * np.exp(0.15 * generator.standard_normal(draws)), 1))
        codes += ["lactate"] * draws

    moments, quantities, names = np.concatenate(hours), np.concatenate(values), np.array(codes)
    wait = np.where([ANALYTES[name].bedside for name in names], 0, generator.uniform(*RESULT_HOURS, len(names)))
    order = np.argsort(moments, kind="stable")
    units = np.array([ANALYTES[name].unit for name in names])
    columns = {
        "hours": moments,
        "available": moments + wait,
        "code": names,
        "value": quantities,
        "unit": units,
    }
    return {name: column[order] for name, column in columns.items()}


def draw_notes(generator: np.random.Generator, *, heart_failure: bool, died: bool) -> list[tuple[float, str, str]]:
    """Draw one patient's notes: an admission note that carries the fact, then progress notes.

    Args:
        generator: source of randomness.
        heart_failure: stated in one of several wordings, else denied or not mentioned.
        died: the outcome, told only in a note after the prediction time, where there is one.

    Returns:
        Hours relative to the prediction time, text and kind of each note, in order of time.
    """
    said = PRESENT if heart_failure else ABSENT
    mentioned = heart_failure or generator.random() >= UNMENTIONED_RATE
    sentences = _pick(generator, IRRELEVANT, int(generator.integers(1, 4)))
    if mentioned:
        sentences += _pick(generator, said, int(generator.integers(1, 3)))
    sentences = [sentences[place] for place in generator.permutation(len(sentences))]
    admitted = -generator.uniform(24, 72)
    notes = [(admitted, " ".join(sentences), "admission")]
    for _ in range(int(generator.choice(4, p=(0.5, 0.25, 0.15, 0.1)))):
        sentences = _pick(generator, IRRELEVANT, int(generator.integers(1, 4)))
        if mentioned and generator.random() < 0.5:
            sentences.append(_pick(generator, said, 1)[0])
        notes.append((generator.uniform(admitted + 4, -0.5), " ".join(sentences), "progress"))
    if generator.random() < 0.3:
        told = "The patient died on the ward." if died else "Discharged home in good condition."
        notes.append((generator.uniform(24, 96), told, "discharge"))
    return sorted(notes)
