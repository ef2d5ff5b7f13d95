"""Units: spellings, factors from molar masses, one unit a code, and clouds that look like two units."""

import itertools

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.datasets import units as units_
from chiasm.datasets.analytes import ANALYTES, conversion, find_analyte, molar_mass
from chiasm.datasets.unit_symbols import parse_unit
from chiasm.datasets.units import harmonise_units, two_clouds


def converted(value, source, target, code):
    line = conversion(parse_unit(source), parse_unit(target), find_analyte(code))
    return None if line is None else value * line.slope + line.intercept


# Spellings


@pytest.mark.parametrize(
    ("spellings", "symbol"),
    [
        (["mg/dL", "mg/dl", "MG/DL", " mg / dL ", "mg%", "mg/100 mL", "mg per dL"], "mg/dL"),
        (["umol/L", "µmol/l", "μmol/L", "UMOL/L", "umol/liter", "umol/litre"], "umol/L"),
        (["ug/mL", "mcg/mL", "µg/ml"], "ug/mL"),
        (
            ["10*3/uL", "10^3/µL", "10³/uL", "x10E3/uL", "x10(3)/mm3", "K/uL", "k/mm^3", "thou/cumm", "1000/uL"],
            "10*3/uL",
        ),
        (["10*9/L", "10^9/L", "x 10⁹/L", "10E9/L", "10e9/l"], "10*9/L"),
        (["10*6/uL", "M/uL", "million/mm3", "mil/ul"], "10*6/uL"),
        (["/uL", "{cells}/uL", "cells/mm3", "#/uL", "/cu.mm"], "/uL"),
        (["meq/L", "mEq/L", "MEQ/L"], "meq/L"),
        (["[IU]/L", "IU/L", "[iU]/l"], "[IU]/L"),
        (["U/L", "u/l", "units/L"], "U/L"),
        (["Cel", "°C", "deg C", "C"], "Cel"),
        (["[degF]", "°F", "F", "degF"], "[degF]"),
        (["mm[Hg]", "mmHg", "mm Hg", "MMHG", "torr"], "mm[Hg]"),
        (["[lb_av]", "lb", "lbs", "pounds"], "[lb_av]"),
        (["[in_i]", "in", "inches"], "[in_i]"),
        (["/min", "bpm", "beats/min", "{breaths}/min"], "/min"),
        (["mL/min/{1.73_m2}", "mL/min/1.73m2", "ml/min/1.73 m^2"], "mL/min/{1.73_m2}"),
        (["ug/mL{FEU}", "mcg/mL FEU", "µg/mL (FEU)"], "ug/mL{FEU}"),
        (["mosm/kg", "mOsm/kg H2O", "mosm/kg{H2O}"], "mosm/kg"),
        (["ug/kg/min", "mcg/kg/min"], "ug/kg/min"),
    ],
)
def test_the_usual_spellings_of_a_unit_are_one(spellings, symbol):
    assert {parse_unit(spelling).symbol for spelling in spellings} == {symbol}
    assert parse_unit(symbol).symbol == symbol


@pytest.mark.parametrize(
    "strange",
    [
        "",
        " ",
        "foo",
        "/",
        "mg/",
        "mg/dL/",
        "ng/mL{x}",
        "10*99/L",
        "109/L",
        "copies/mL",
        "nan",
        "mg dL",
        "10*" + "9" * 50,
        "(" * 10**6,
    ],
)
def test_what_is_no_known_unit_is_none(strange):
    assert parse_unit(strange) is None


def test_capital_g_a_litre_is_giga_for_cells_gram_for_what_is_weighed_and_else_not_known():
    assert parse_unit("G/L") is None
    assert parse_unit("G/L", counts=True).symbol == "10*9/L"
    assert parse_unit("G/L", counts=False).symbol == "g/L"


# Factors


def test_molar_masses_are_those_of_the_formula():
    # By hand: 6 × 12.011 + 12 × 1.008 + 6 × 15.999; 4 × 12.011 + 7 × 1.008 + 3 × 14.007 + 15.999; 2 × 14.007.
    assert molar_mass("C6H12O6") == pytest.approx(180.156)
    assert molar_mass("C4H7N3O") == pytest.approx(113.120)
    assert molar_mass("N2") == pytest.approx(28.014)
    # 63 × 12.011 + 88 × 1.008 + 58.933 + 14 × 14.007 + 14 × 15.999 + 30.974
    assert molar_mass("C63H88CoN14O14P") == pytest.approx(1355.388)
    for analyte in ANALYTES:
        assert (analyte.molar_mass is None) == (analyte.formula == "")


@pytest.mark.parametrize(
    ("code", "source", "target", "factor"),
    [
        ("glucose", "mg/dL", "mmol/L", 0.0555),
        ("creatinine", "mg/dL", "umol/L", 88.4),
        ("BUN", "mg/dL", "mmol/L", 0.357),
        ("urea", "mg/dL", "mmol/L", 0.1665),
        ("bilirubin", "mg/dL", "umol/L", 17.1),
        ("calcium", "mg/dL", "mmol/L", 0.25),
        ("calcium", "meq/L", "mmol/L", 0.5),
        ("cholesterol", "mg/dL", "mmol/L", 0.0259),
        ("triglycerides", "mg/dL", "mmol/L", 0.0113),
        ("lactate", "mg/dL", "mmol/L", 0.111),
        ("hemoglobin", "g/dL", "g/L", 10),
        ("hemoglobin", "g/dL", "mmol/L", 0.6206),
        ("albumin", "g/dL", "g/L", 10),
        ("sodium", "meq/L", "mmol/L", 1),
        ("potassium", "mg/dL", "mmol/L", 0.2558),
        ("chloride", "meq/L", "mmol/L", 1),
        ("magnesium", "mg/dL", "mmol/L", 0.4114),
        ("magnesium", "meq/L", "mmol/L", 0.5),
        ("phosphate", "mg/dL", "mmol/L", 0.323),
        ("iron", "ug/dL", "umol/L", 0.179),
        ("uric acid", "mg/dL", "umol/L", 59.48),
        ("ammonia", "ug/dL", "umol/L", 0.587),
        ("cortisol", "ug/dL", "nmol/L", 27.59),
        ("thyroxine", "ug/dL", "nmol/L", 12.87),
        ("free t4", "ng/dL", "pmol/L", 12.87),
        ("triiodothyronine", "ng/dL", "nmol/L", 0.01536),
        ("vitamin d", "ng/mL", "nmol/L", 2.496),
        ("vitamin b12", "pg/mL", "pmol/L", 0.738),
        ("folate", "ng/mL", "nmol/L", 2.266),
        ("digoxin", "ng/mL", "nmol/L", 1.281),
        ("vancomycin", "ug/mL", "umol/L", 0.690),
        ("phenytoin", "ug/mL", "umol/L", 3.964),
        ("acetaminophen", "ug/mL", "umol/L", 6.62),
        ("salicylate", "mg/dL", "mmol/L", 0.0724),
        ("ethanol", "mg/dL", "mmol/L", 0.2171),
        ("lithium", "meq/L", "mmol/L", 1),
        ("crp", "mg/dL", "mg/L", 10),
        ("troponin i", "ng/mL", "ng/L", 1000),
        ("wbc", "/uL", "10*9/L", 0.001),
        ("wbc", "10*3/uL", "10*9/L", 1),
        ("rbc", "10*6/uL", "10*12/L", 1),
        ("hematocrit", "%", "L/L", 0.01),
        ("pco2", "mm[Hg]", "kPa", 0.1333),
        ("alt", "U/L", "ukat/L", 0.016667),
        ("weight", "[lb_av]", "kg", 0.45359),
        ("height", "[in_i]", "cm", 2.54),
        ("any other", "mg/dL", "g/L", 0.01),
        ("any other", "u[IU]/mL", "m[IU]/L", 1),
    ],
)
def test_factors_are_those_of_the_published_tables(code, source, target, factor):
    # SI conversion factors of the AMA Manual of Style (11th edition, chapter 17.5) and the definitions of the units.
    assert converted(1.0, source, target, code) == pytest.approx(factor, rel=5e-3)
    assert converted(converted(3.7, source, target, code), target, source, code) == pytest.approx(3.7)


def test_conversions_with_an_offset():
    assert converted(98.6, "[degF]", "Cel", "temperature") == pytest.approx(37.0)
    assert converted(37.0, "Cel", "[degF]", "temperature") == pytest.approx(98.6)
    # NGSP's published pairs of HbA1c: 6.5 % and 48 mmol/mol, 9 % and 75.
    assert converted(6.5, "%", "mmol/mol", "4548-4") == pytest.approx(48, abs=0.5)
    assert converted(75, "mmol/mol", "%", "hba1c") == pytest.approx(9.0, abs=0.05)


@pytest.mark.parametrize(
    ("code", "source", "target"),
    [
        ("any other", "mg/dL", "mmol/L"),
        ("INR", "%", "1"),
        ("5902-2", "%", "{INR}"),
        ("d dimer", "ng/mL{FEU}", "ng/mL{DDU}"),
        ("glucose", "mg/dL", "mmol"),
        ("albumin", "g/L", "umol/L"),
        ("egfr", "mL/min", "mL/min/{1.73_m2}"),
        ("urea", "mg/dL", "meq/L"),
        ("hba1c", "mmol/mol", "1"),
        ("lymphocytes", "%", "10*9/L"),
    ],
)
def test_what_has_no_one_factor_is_not_converted(code, source, target):
    assert converted(1.0, source, target, code) is None


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("2345-7", "glucose"),
        ("LOINC//14749-6", "glucose"),
        ("http://loinc.org|2160-0", "creatinine"),
        ("Glucose [Mass/volume] in Serum or Plasma", "glucose"),
        ("Bilirubin.total [Moles/volume] in Serum or Plasma", "bilirubin"),
        ("Urea Nitrogen (Blood, Chemistry)", "urea nitrogen"),
        ("TroponinT", "troponin t"),
        ("K", "potassium"),
        ("Lactate Dehydrogenase (LD) (Blood, Chemistry)", "lactate dehydrogenase"),
        ("Hemoglobin A1c/Hemoglobin.total in Blood", "hemoglobin a1c"),
    ],
)
def test_an_analyte_is_known_by_its_loinc_code_its_long_name_and_common_ones(code, name):
    assert find_analyte(code).name == name


@pytest.mark.parametrize("code", ["9999-9", "HR", "glucose tolerance", "condition: http://loinc.org|x", ""])
def test_what_only_resembles_an_analyte_is_none(code):
    assert find_analyte(code) is None


def test_no_name_and_no_loinc_code_stands_for_two_analytes_and_all_units_of_each_convert():
    for field in ("loinc", "names"):
        words = [
            word for one in ANALYTES for word in getattr(one, field).split("|" if field == "names" else " ") if word
        ]
        assert len(words) == len(set(words))
    for analyte in ANALYTES:
        for source, target in itertools.product(analyte.reported_in(), repeat=2):
            assert conversion(source, target, analyte) is not None, (analyte.name, source, target)


# One unit a code


def labs(*rows):
    return pd.DataFrame(rows, columns=["code", "value", "unit"])


MIXED = labs(
    ("2345-7", 90.0, "mg/dL"),
    ("2345-7", 180.156, "MG/DL"),
    ("2345-7", 5.0, "mmol/L"),
    ("2345-7", 7.0, None),
    ("WBC", 4.5, "K/uL"),
    ("GCS", 15.0, " "),
    ("odd", 1.0, "foo"),
)


def test_values_take_the_most_frequent_unit_of_their_code_and_blank_ones_stay():
    table, report = harmonise_units(MIXED)
    assert table["value"].tolist() == pytest.approx([90, 180.156, 5 * 18.0156, 7, 4.5, 15, 1])
    assert table["unit"].astype(object).where(table["unit"].notna(), None).tolist() == [
        *("mg/dL", "mg/dL", "mg/dL", None, "10*3/uL", None, "foo")
    ]
    told = report.set_index(["code", "unit"])
    assert told["done"].tolist() == ["kept", "respelt", "converted", "blank", "respelt", "blank", "kept"]
    assert told["rows"].tolist() == [1] * 7
    assert told.loc[("2345-7", "mmol/L"), "slope"] == pytest.approx(18.0156)
    assert list(report.columns) == ["code", "unit", "rows", "done", "to", "slope", "intercept"]


@pytest.mark.parametrize("name", ["glucose", "2345-7"])
def test_the_unit_may_be_chosen_by_code_or_analyte(name):
    table, report = harmonise_units(MIXED, to={name: "mmol/l"})
    assert table["value"].tolist()[:4] == pytest.approx([90 / 18.0156, 10, 5, 7])
    assert report["to"].tolist()[:3] == ["mmol/L"] * 3


def test_units_without_a_known_conversion_are_refused_or_become_codes_of_their_own():
    table = labs(("D", 1.0, "mg/dL"), ("D", 2.0, "mmol/L"), ("D", 3.0, "mg/dL"), ("D", 4.0, "g/L"), ("E", 5.0, "foo"))
    message = r"labs: D has 1 values in 'mmol/L', and no conversion to 'mg/dL' is known.*unconvertible=\"separate\""
    with pytest.raises(InputError, match=message):
        harmonise_units(table)
    separate, report = harmonise_units(table, unconvertible="separate")
    assert separate["code"].tolist() == ["D", "D [mmol/L]", "D", "D", "E"]
    assert separate["value"].tolist() == pytest.approx([1, 2, 3, 400, 5])
    assert report.set_index(["code", "unit"])["done"].to_dict() == {
        ("D", "mg/dL"): "kept",
        ("D", "mmol/L"): "separate",
        ("D", "g/L"): "converted",
        ("E", "foo"): "kept",
    }


def test_two_units_that_are_not_known_are_not_taken_for_one_and_a_known_one_goes_first():
    with pytest.raises(InputError, match="D has 1 values in 'bar', and no conversion to 'foo' is known"):
        harmonise_units(labs(("D", 1.0, "foo"), ("D", 1.0, "foo"), ("D", 1.0, "bar")))
    with pytest.raises(InputError, match="D has 2 values in 'foo', and no conversion to 'mg/dL' is known"):
        harmonise_units(labs(("D", 1.0, "foo"), ("D", 1.0, "foo"), ("D", 1.0, "mg/dL")))


def test_a_cohort_is_harmonised_with_a_line_in_its_attrition_log(hospital):
    with_units = hospital["labs"].assign(unit=lambda table: np.where(table["code"] == "lactate", "mmol/L", "meq/L"))
    first = with_units["code"].eq("lactate").idxmax()
    with_units.loc[first, ["value", "unit"]] = [18.016, "mg/dL"]
    tables = {name: hospital[name] for name in ("outcomes", "static")}
    cohort, report = harmonise_units(Cohort(**tables, labs=with_units), to={"sodium": "mmol/L"})
    assert cohort.attrition["step"].iloc[-1] == "units converted in 2 codes"
    assert set(cohort.labs["unit"]) == {"mmol/L"}
    assert len(report) == 3
    # 18.016 mg/dL of lactic acid, 90.078 g/mol.
    assert np.isclose(cohort.labs["value"], 2.0001, atol=1e-4).any()
    again, same = harmonise_units(cohort)
    pd.testing.assert_frame_equal(again.labs, cohort.labs)
    assert set(same["done"]) == {"kept"}


def test_nothing_to_harmonise_is_no_error(hospital):
    without = Cohort(hospital["outcomes"], static=hospital["static"])
    assert harmonise_units(without)[0] is without
    plain, report = harmonise_units(MIXED.drop(columns="unit"))
    assert plain["value"].tolist() == MIXED["value"].tolist()
    assert set(report["done"]) == {"blank"}
    whole, _ = harmonise_units(labs(("x", 1, "g/L"), ("x", 2, "g/L"), ("x", 5, "mg/dL")))
    assert whole["value"].tolist() == [1, 2, 0.05]


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (MIXED, {"to": {"glucos": "mmol/L"}}, "to names 'glucos', which is no code of labs and no analyte of theirs"),
        (MIXED, {"to": {"glucose": "foo/L"}}, "to wants 2345-7 in 'foo/L', which is no unit that is known"),
        (MIXED, {"unconvertible": "drop"}, 'unconvertible is \'drop\'; expected "raise" or "separate"'),
        (MIXED.drop(columns="code"), {}, "labs lacks the column code"),
        (MIXED.assign(value="5 mg"), {}, "labs.value holds str, not numbers"),
        (labs(("x", 1.0, "g/L"), (None, 1.0, "g/L")), {}, "labs, data row 2: code is blank"),
    ],
)
def test_labs_or_settings_that_cannot_be_used_are_refused(table, settings, message):
    with pytest.raises(InputError, match=message):
        harmonise_units(table, **settings)


# Two clouds


def cloud(code, values):
    return pd.DataFrame({"code": code, "value": values})


def drawn(seed=0, size=4000):
    random = np.random.default_rng(seed)
    return {
        "2345-7": np.round(random.lognormal(np.log(130), 0.4, size)),
        "creatinine": np.round(random.lognormal(0.1, 0.6, size), 1).clip(0.1),
        "Ca": np.round(random.normal(8.4, 0.8, size), 1),
        "Temp": np.round(random.normal(37.1, 0.8, size), 1),
        "718-7": np.round(random.normal(10.5, 1.8, size), 1),
        "PaCO2": np.round(random.lognormal(np.log(40), 0.25, size)),
        "height": np.round(random.normal(170, 10, size)),
        "WBC": np.round(random.lognormal(np.log(11), 0.5, size), 1),
        "local": np.round(random.lognormal(3, 0.5, size), 1),
    }


CHANGES = {
    "2345-7": (lambda value: np.round(value / 18.016, 1), "mmol/L and mg/dL of glucose"),
    "creatinine": (lambda value: np.round(value * 88.4), "mg/dL and umol/L of creatinine"),
    "Ca": (lambda value: np.round(value / 4.008, 2), "mmol/L and mg/dL of calcium"),
    "Temp": (lambda value: np.round(value * 1.8 + 32, 1), "Cel and [degF] of body temperature"),
    "718-7": (lambda value: value * 10, "g/dL and g/L of hemoglobin"),
    "PaCO2": (lambda value: np.round(value * 0.1333, 1), "kPa and mm[Hg] of carbon dioxide partial pressure"),
    "height": (lambda value: np.round(value / 2.54), "[in_i] and cm of body height"),
    "WBC": (lambda value: value * 1000, "10*9/L and /uL of leukocytes"),
    "local": (lambda value: value * 100, ""),
}


@pytest.mark.parametrize("share", [0.03, 0.5])
@pytest.mark.parametrize("code", CHANGES)
def test_two_units_in_one_code_are_two_clouds(code, share):
    change, likely = CHANGES[code]
    values = drawn()[code]
    other = np.arange(len(values)) < share * len(values)
    mixed = np.where(other, change(values), values)
    found = two_clouds(cloud(code, mixed))
    assert found["code"].tolist() == [code]
    row = found.iloc[0]
    assert row["likely"] == likely
    low, high = sorted([np.median(values[~other]), np.median(change(values[other]))])
    assert (row["low"], row["high"], row["ratio"]) == pytest.approx((low, high, high / low), rel=0.02)
    up = other if np.median(change(values)) > np.median(values) else ~other
    assert row["share_high"] == pytest.approx(up.mean(), abs=0.005)


CLEAN = {
    "troponin": lambda random, size: np.round(random.lognormal(-3, 2.2, size), 2).clip(0.01),
    "heavy tail": lambda random, size: np.exp(random.standard_t(2, size)),
    "bilirubin": lambda random, size: np.round(random.lognormal(-0.2, 1.1, size), 1).clip(0.1),
    "heparin": lambda random, size: np.where(
        random.random(size) < 0.3, random.normal(80, 20, size), random.normal(32, 5, size)
    ),
    "close": lambda random, size: np.where(random.random(size) < 0.5, 1.0, 3.0) * random.lognormal(0, 0.3, size),
    "indicator": lambda random, size: random.integers(0, 2, size),
    "score": lambda random, size: random.choice([3, 6, 7, 8, 9, 10, 11, 14, 15], size),
    "doses": lambda random, size: random.choice([100, 200, 500, 1000, 5000], size),
    "one or ten": lambda random, size: random.choice([1.0, 10.0], size),
    "typos": lambda random, size: random.normal(4.2, 0.5, size) * np.where(random.random(size) < 0.004, 10, 1),
    "urine": lambda random, size: 5 * np.round(random.gamma(1.5, 16, size)),
    "count": lambda random, size: random.geometric(0.2, size),
    "normal": lambda random, size: random.normal(0, 1, size),
}


@pytest.mark.parametrize("size", [50, 300, 4000])
def test_one_cloud_scores_indicators_and_heavy_tails_are_no_finding(size):
    for seed in range(5):
        random = np.random.default_rng(seed)
        table = pd.concat([cloud(name, make(random, size)) for name, make in CLEAN.items()])
        whole = pd.concat([table, *(cloud(code, values) for code, values in drawn(seed, size).items())])
        assert two_clouds(whole).empty, seed


def test_codes_of_few_values_are_not_looked_at_one_by_one(monkeypatch):
    looked, find = [], units_.find_analyte
    monkeypatch.setattr(units_, "find_analyte", lambda code: looked.append(code) or find(code))
    codes = ["crp"] * 200 + [f"said {number}" for number in range(300)]
    two_clouds(pd.DataFrame({"code": codes, "value": 5.0}))
    assert looked == ["crp"]


def test_clouds_do_not_depend_on_the_order_of_rows_and_few_or_strange_values_are_no_error():
    values = np.concatenate([drawn()["2345-7"][:300], drawn()["2345-7"][300:500] / 18.016])
    table = cloud("2345-7", values)
    pd.testing.assert_frame_equal(two_clouds(table), two_clouds(table.iloc[::-1]))
    strange = cloud("x", [np.nan, np.inf, -np.inf, 0.0, -5.0, 1e-300, 1e300] * 30)
    few = cloud("y", [1.0, 1000.0])
    found = two_clouds(pd.concat([strange, few, cloud("z", [5.0] * 100)]))
    assert found.empty
    assert found.columns.tolist() == ["code", "low", "high", "ratio", "share_high", "likely"]
    with pytest.raises(InputError, match="labs lacks the column value"):
        two_clouds(table[["code"]])
