"""Common analytes: their names, LOINC codes, and what turns mass into amount.

Molar masses are sums over the formula, so that every factor between mg/dL and mmol/L can be checked.

Source: formulas and LOINC codes are public facts (PubChem; LOINC, https://loinc.org); standard atomic
weights: IUPAC, abridged, 2021. Haemoglobin's amount is that of its monomer, with one iron, 16,114.5 g/mol
(IFCC). HbA1c: NGSP (%) = 0.09148 × IFCC (mmol/mol) + 2.152 (https://ngsp.org/ifcc.asp).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from .unit_symbols import Unit, parse_unit

ATOMIC_WEIGHTS = {
    "H": 1.008,
    "Li": 6.94,
    "C": 12.011,
    "N": 14.007,
    "O": 15.999,
    "Na": 22.990,
    "Mg": 24.305,
    "P": 30.974,
    "S": 32.06,
    "Cl": 35.45,
    "K": 39.098,
    "Ca": 40.078,
    "Fe": 55.845,
    "Co": 58.933,
    "I": 126.90,
}
"""g/mol."""

_HAEMOGLOBIN = 16_114.5
_NGSP_SLOPE, _NGSP_INTERCEPT = 0.09148, 2.152


@dataclass(frozen=True)
class Analyte:
    """What is measured, and in what."""

    name: str
    names: str
    """Other names, separated by "|"."""
    loinc: str
    """LOINC codes, of whatever property and specimen, separated by spaces."""
    units: str
    """The units in which laboratories report it, in UCUM, separated by spaces."""
    formula: str = ""
    """Of the molecule by which mass and amount are related; "" where they are not."""
    charge: int = 0
    """Equivalents a mole; 0 where it has none."""

    @property
    def molar_mass(self) -> float | None:
        """g/mol."""
        if self.formula == "Hb":
            return _HAEMOGLOBIN
        return molar_mass(self.formula) if self.formula else None

    @property
    def is_counted(self) -> bool:
        """Whether it is cells."""
        return self.units.startswith(("10*", "/"))

    def reported_in(self) -> list[Unit]:
        """Its customary units."""
        units = [parse_unit(symbol, counts=self.is_counted) for symbol in self.units.split()]
        assert None not in units, f"{self.name} has a unit that is not known"
        return units


def molar_mass(formula: str) -> float:
    """g/mol of a formula such as `C6H12O6`."""
    return sum(ATOMIC_WEIGHTS[atom] * int(count or 1) for atom, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula))


_CELLS = "10*9/L 10*3/uL /uL"
ANALYTES = (
    # Metabolites
    Analyte(
        "glucose",
        "blood glucose|blood sugar|fasting glucose|glucose finger stick|serum glucose",
        "2345-7 2339-0 2340-8 41653-7 41652-9 41651-1 32016-8 1558-6 2350-7 2344-0 2342-4 74774-1 "
        "14749-6 15074-8 72516-8 14743-9 39480-9 39481-7 51596-5 14771-0 15076-3 14745-4 14744-7",
        "mg/dL mmol/L",
        "C6H12O6",
    ),
    Analyte(
        "creatinine",
        "serum creatinine|creat|crea|creatinine serum",
        "2160-0 38483-4 2161-8 12190-5 35674-1 14682-9 59826-8 14683-7 25386-4 55593-8",
        "mg/dL umol/L",
        "C4H7N3O",
    ),
    # Reported as the nitrogen of urea: two atoms a molecule.
    Analyte("urea nitrogen", "bun|blood urea nitrogen", "3094-0 6299-2 3095-7 14937-7 14938-5", "mg/dL mmol/L", "N2"),
    Analyte("urea", "blood urea", "3091-6 20977-5 3092-4 22664-7 72903-8 59570-2 22700-9", "mg/dL mmol/L", "CH4N2O"),
    Analyte(
        "bilirubin",
        "bilirubin total|total bilirubin|tbil|bilirubin direct|direct bilirubin|bilirubin indirect|indirect bilirubin",
        "1975-2 1968-7 1971-1 42719-5 14631-6 14629-0 14630-8 54363-7",
        "mg/dL umol/L",
        "C33H36N4O6",
    ),
    Analyte(
        "cholesterol",
        "total cholesterol|cholesterol total|hdl|ldl|hdl cholesterol|ldl cholesterol|cholesterol hdl|cholesterol ldl|"
        "cholesterol in hdl|cholesterol in ldl",
        "2093-3 2085-9 2089-1 13457-7 18262-6 14647-2 14646-4 22748-8 39469-2 69419-0",
        "mg/dL mmol/L",
        "C27H46O",
    ),
    # As triolein, which the customary factor 0.0113 stands for.
    Analyte("triglyceride", "triglycerides|tg", "2571-8 3043-7 14927-8 70218-3", "mg/dL mmol/L", "C57H104O6"),
    Analyte("lactate", "lactic acid|lac", "2524-7 32693-4 2518-9 14118-4 59032-3 30242-2", "mmol/L mg/dL", "C3H6O3"),
    Analyte("urate", "uric acid", "3084-1 14933-6", "mg/dL umol/L", "C5H4N4O3"),
    Analyte("ammonia", "nh3", "1841-6 1839-0 16362-6 22763-7", "umol/L ug/dL", "NH3"),
    # Electrolytes and minerals
    Analyte("sodium", "na|serum sodium|sodium whole blood", "2951-2 2947-0 2955-3", "mmol/L meq/L mg/dL", "Na", 1),
    Analyte(
        "potassium", "k|serum potassium|potassium whole blood", "2823-3 6298-4 75940-7", "mmol/L meq/L mg/dL", "K", 1
    ),
    Analyte("chloride", "cl|serum chloride|chloride whole blood", "2075-0 2069-3", "mmol/L meq/L mg/dL", "Cl", 1),
    Analyte("bicarbonate", "hco3|total co2|tco2", "1963-8 1959-6 2028-9", "mmol/L meq/L", "HCO3", 1),
    Analyte(
        "calcium",
        "ca|calcium total|total calcium|ionized calcium|calcium ionized|free calcium|ica",
        "17861-6 17863-2 1994-3 1995-0 2000-8 38230-9 49765-1 1996-8",
        "mg/dL mmol/L meq/L",
        "Ca",
        2,
    ),
    Analyte("magnesium", "mg|serum magnesium", "19123-9 21377-7 2601-3 2593-2", "mg/dL mmol/L meq/L", "Mg", 2),
    # Phosphate in mg/dL is its phosphorus.
    Analyte(
        "phosphate", "phosphorus|phos|po4|inorganic phosphate", "2777-1 2774-8 14879-1 24519-1", "mg/dL mmol/L", "P"
    ),
    Analyte(
        "iron", "fe|serum iron|iron binding capacity total|tibc", "2498-4 2500-7 14798-3 14800-7", "ug/dL umol/L", "Fe"
    ),
    Analyte("lithium", "li", "3719-2 14334-7", "mmol/L meq/L ug/mL", "Li", 1),
    # Proteins
    Analyte(
        "hemoglobin",
        "haemoglobin|hgb|hb",
        "718-7 20509-6 30313-1 30350-3 59260-0 75928-2",
        "g/dL g/L mmol/L",
        "Hb",
    ),
    Analyte(
        "hemoglobin a1c",
        "hba1c|a1c|haemoglobin a1c|%hemoglobin a1c|hemoglobin a1c/hemoglobin total in blood",
        "4548-4 17856-6 59261-8",
        "% mmol/mol",
    ),
    Analyte("albumin", "alb|serum albumin", "1751-7 61151-7 61152-5", "g/dL g/L"),
    Analyte("protein", "total protein|protein total", "2885-2", "g/dL g/L"),
    Analyte("c reactive protein", "crp|c-reactive protein|hs crp", "1988-5 30522-7", "mg/L mg/dL"),
    Analyte("fibrinogen", "fibrinogen functional", "3255-7 3256-5", "mg/dL g/L"),
    Analyte("ferritin", "", "2276-4 20567-4", "ng/mL ug/L"),
    Analyte("troponin i", "troponini|tni|ctni|cardiac troponin i", "10839-9 42757-5 49563-0 89579-7", "ng/mL ng/L"),
    Analyte("troponin t", "troponint|tnt|ctnt|cardiac troponin t", "6598-7 48425-3 67151-1", "ng/mL ng/L"),
    Analyte("d dimer", "d-dimer", "48065-7", "ug/mL{FEU} ng/mL{FEU}"),
    # Enzymes, whose activity is also given in katal
    Analyte("alanine aminotransferase", "alt|sgpt|alanine aminotransferase (alt)", "1742-6 1743-4", "U/L ukat/L"),
    Analyte("aspartate aminotransferase", "ast|sgot|asparate aminotransferase", "1920-8", "U/L ukat/L"),
    Analyte("alkaline phosphatase", "alp", "6768-6", "U/L ukat/L"),
    Analyte("lactate dehydrogenase", "ldh|ld", "2532-0 14804-9", "U/L ukat/L"),
    Analyte("creatine kinase", "ck|cpk", "2157-6", "U/L ukat/L"),
    # Hormones, vitamins and drugs
    Analyte("cortisol", "", "2143-6 14675-3", "ug/dL nmol/L", "C21H30O5"),
    Analyte("thyroxine", "t4|total t4", "3026-2 14921-1", "ug/dL nmol/L", "C15H11I4NO4"),
    Analyte(
        "free thyroxine",
        "ft4|free t4|thyroxine free|thyroxine (t4) free",
        "3024-7 14920-3",
        "ng/dL pmol/L",
        "C15H11I4NO4",
    ),
    Analyte("triiodothyronine", "t3|total t3", "3053-6 14930-2", "ng/dL nmol/L", "C15H12I3NO4"),
    Analyte(
        "25-hydroxyvitamin d",
        "vitamin d|25-oh vitamin d|25 hydroxyvitamin d",
        "1989-3 62292-8 14635-7",
        "ng/mL nmol/L",
        "C27H44O2",
    ),
    Analyte("vitamin b12", "b12|cobalamin|cobalamins", "2132-9 14685-2", "pg/mL pmol/L", "C63H88CoN14O14P"),
    Analyte("folate", "folic acid", "2284-8 14732-2", "ng/mL nmol/L", "C19H19N7O6"),
    Analyte("digoxin", "", "10535-3 14698-5", "ng/mL nmol/L", "C41H64O14"),
    Analyte(
        "vancomycin", "vancomycin trough", "20578-1 4092-3 4090-7 31012-8 39797-6", "ug/mL umol/L", "C66H75Cl2N9O24"
    ),
    Analyte("phenytoin", "", "3968-5 14877-5", "ug/mL umol/L", "C15H12N2O2"),
    Analyte("acetaminophen", "paracetamol", "3298-7 14581-3", "ug/mL umol/L", "C8H9NO2"),
    Analyte("salicylate", "salicylates", "4024-6 14909-6", "mg/dL mmol/L", "C7H6O3"),
    Analyte("ethanol", "alcohol|ethyl alcohol", "5640-8 5643-2 15120-9 14719-9", "mg/dL mmol/L", "C2H6O"),
    # Blood cells
    Analyte("leukocytes", "wbc|white blood cells|white blood cell count|wbc count", "6690-2 26464-8 804-5", _CELLS),
    Analyte("platelets", "plt|platelet count", "777-3 26515-7", _CELLS),
    Analyte("neutrophils", "absolute neutrophil count|neutrophil count", "751-8 26499-4", _CELLS),
    Analyte("lymphocytes", "absolute lymphocyte count|lymphocyte count", "731-0 26474-7", _CELLS),
    Analyte("erythrocytes", "rbc|red blood cells", "789-8 26453-1", "10*12/L 10*6/uL"),
    Analyte("hematocrit", "haematocrit|hct", "4544-3 20570-8 71833-8", "% L/L"),
    # Gases and vital signs
    Analyte("carbon dioxide partial pressure", "paco2|pco2|pvco2", "2019-8 11557-6 2021-4", "mm[Hg] kPa"),
    Analyte("oxygen partial pressure", "pao2|po2|pvo2", "2703-7 11556-8 2705-2", "mm[Hg] kPa"),
    Analyte(
        "oxygen saturation",
        "sao2|spo2|o2 saturation|oxygen saturation in arterial blood",
        "2708-6 59408-5 20564-1",
        "% 1",
    ),
    Analyte("inspired oxygen fraction", "fio2|inspired oxygen", "3150-6 19994-3", "% 1"),
    Analyte("body temperature", "temp|temperature|body temp", "8310-5 8331-1 8332-9 8329-5 8328-7", "Cel [degF]"),
    Analyte("body weight", "weight|wt", "29463-7 3141-9 3142-7 8335-2", "kg [lb_av]"),
    Analyte("body height", "height|ht", "8302-2 8308-9 3137-7", "cm [in_i] m"),
)

_LOINC = re.compile(r"(?:.*loinc.*[/|:\s])?(\d{1,6}-\d)", re.IGNORECASE)
_TAIL = re.compile(r"\s*[\[(].*")


@cache
def _index() -> tuple[dict[str, Analyte], dict[str, Analyte]]:
    by_loinc = {code: one for one in ANALYTES for code in one.loinc.split()}
    by_name = {_plain_name(name): one for one in ANALYTES for name in [one.name, *filter(None, one.names.split("|"))]}
    return by_loinc, by_name


def _plain_name(name: str) -> str:
    return " ".join(re.sub(r"[._,\-]", " ", name.casefold()).split())


def find_analyte(code: str) -> Analyte | None:
    """The analyte that a code means: a LOINC code, its long name, or a common name, with a specimen in brackets."""
    by_loinc, by_name = _index()
    loinc = _LOINC.fullmatch(code.strip())
    if loinc:
        return by_loinc.get(loinc[1])
    return by_name.get(_plain_name(code)) or by_name.get(_plain_name(_TAIL.sub("", code)))


@dataclass(frozen=True)
class Conversion:
    """`value × slope + intercept`."""

    slope: float = 1.0
    intercept: float = 0.0


def conversion(source: Unit, target: Unit, analyte: Analyte | None) -> Conversion | None:
    """How values in one unit become values in another, or None where that is not known.

    Between units of one dimension it is known for everything but fractions; between mass, amount and
    equivalents for analytes whose molar mass and charge are known.
    """
    if source.symbol == target.symbol:
        return Conversion()
    if analyte is not None and analyte.name == "hemoglobin a1c" and {source.symbol, target.symbol} == {"%", "mmol/mol"}:
        if source.symbol == "%":
            return Conversion(1 / _NGSP_SLOPE, -_NGSP_INTERCEPT / _NGSP_SLOPE)
        return Conversion(_NGSP_SLOPE, _NGSP_INTERCEPT)
    if source.dimension == target.dimension == "1" and (analyte is None or "%" not in analyte.units.split()):
        # A per cent need not be a hundredth of the same: clotting in % of normal beside the INR.
        return None
    factor = source.factor / target.factor
    if source.dimension == target.dimension:
        return Conversion(factor, (source.offset - target.offset) / target.factor)
    (have, _, by), (want, _, also) = source.dimension.partition("/"), target.dimension.partition("/")
    a_mole = {"mol": 1.0, "g": analyte and analyte.molar_mass, "eq": analyte and (analyte.charge or None)}
    if by != also or not a_mole.get(have) or not a_mole.get(want):
        return None
    return Conversion(factor * a_mole[want] / a_mole[have])
