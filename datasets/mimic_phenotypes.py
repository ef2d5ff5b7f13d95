"""The 25 care phenotypes of the public MIMIC benchmark, from the diagnoses that a hospital stay was billed with.

A phenotype is a category of AHRQ's Clinical Classifications Software (CCS), single level. Its codes
stand here as the shortest beginnings (of at least three characters) that all known codes of the
category have and no code of another category has. `=` marks a code that counts only whole: an old
one that was later divided among categories. So a code that was added after the files below were
published falls where its neighbours are.

Source: HCUP Clinical Classifications Software (CCS) for ICD-9-CM, 2015 (Appendix A, revised March
2016), and CCS for ICD-10-CM, version 2019.1 (beta), Agency for Healthcare Research and Quality,
https://hcup-us.ahrq.gov/toolssoftware/ccs/ccs.jsp. Which 25 categories: Harutyunyan et al., Multitask
learning and benchmarking with clinical time series data, Scientific Data 6:96 (2019), which has ICD-9
alone, as MIMIC-III does; the ICD-10 side is the same categories in AHRQ's own file for ICD-10.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

__all__ = ["PHENOTYPES", "phenotypes_of"]


class Phenotype(NamedTuple):
    """A CCS category, and the beginnings of its codes (without the dot)."""

    title: str
    number: int
    icd9: str
    icd10: str


PHENOTYPES: dict[str, Phenotype] = {
    "acute_renal_failure": Phenotype(
        "Acute and unspecified renal failure",
        157,
        "584 586",
        "N17 N19",
    ),
    "acute_cerebrovascular_disease": Phenotype(
        "Acute cerebrovascular disease",
        109,
        "3466 430 431 432 43301 43311 43321 43331 43381 43391 434 436",
        "G436 I60 I61 I62 I63 I66 R297",
    ),
    "acute_myocardial_infarction": Phenotype(
        "Acute myocardial infarction",
        100,
        "410",
        "I21 I22",
    ),
    "cardiac_dysrhythmias": Phenotype(
        "Cardiac dysrhythmias",
        106,
        "4270 4271 4272 4273 4276 4278 4279 7850 7851",
        "I47 I48 I491 I492 I493 I494 I495 I498 I499 R000 R001 R002",
    ),
    "chronic_kidney_disease": Phenotype(
        "Chronic kidney disease",
        158,
        "585 7925 V420 V451 V56",
        "N18 R880 Z49 Z9115 Z940 Z992",
    ),
    "copd_and_bronchiectasis": Phenotype(
        "Chronic obstructive pulmonary disease and bronchiectasis",
        127,
        "490 491 492 494 496",
        "J40 J41 J42 J43 J44 J47",
    ),
    "complications_of_care": Phenotype(
        "Complications of surgical procedures or medical care",
        238,
        "27661 27783 27788 2853 28741 3490 3491 34931 41511 4294 4582 5121 5122 5187 5190 53086 53087 5364 539 "
        "5642 5643 5644 56962 5697 5793 59681 78062 78063 78066 9093 99524 9954 99586 997 998 9990 9991 9992 "
        "99934 99939 9994 9995 9996 9997 9998 9999 =5696 =9993 V1553 V1580 V1583 V900",
        "D6481 D6951 D78 E36 E7143 E8771 E883 E89 G97 H59 H952 H953 H954 H955 H958 I952 I953 I9581 I97 J95 K1232 "
        "K6811 K910 K911 K912 K913 K916 K917 K918 K9403 K9413 K942 K943 K95 L76 M960 M968 M97 N98 N99 R5082 R5083 "
        "R5084 T80 T81 T873 T874 T875 T878 T879 T88 Z180 Z87821 Z9283 Z9284",
    ),
    "conduction_disorders": Phenotype(
        "Conduction disorders",
        105,
        "426 V450 V533",
        "I44 I45 Z450 Z950 Z95810",
    ),
    "congestive_heart_failure": Phenotype(
        "Congestive heart failure; nonhypertensive",
        108,
        "39891 428",
        "I0981 I50",
    ),
    "coronary_atherosclerosis": Phenotype(
        "Coronary atherosclerosis and other heart disease",
        101,
        "411 412 413 41400 41401 41406 4142 4143 4144 4148 4149 =4140 V4581 V4582",
        "I20 I237 I24 I251 I252 I255 I256 I2575 I25811 I2582 I2583 I2584 I2589 I259 Z951 Z955 Z9861",
    ),
    "diabetes_with_complications": Phenotype(
        "Diabetes mellitus with complications",
        50,
        "24901 2491 2492 2493 2494 2495 2496 2497 2498 2499 25002 25003 2501 2502 2503 2504 2505 2506 2507 2508 2509",
        "E080 E081 E082 E083 E084 E085 E086 E088 E090 E091 E092 E093 E094 E095 E096 E098 E101 E102 E103 E104 E105 "
        "E106 E108 E110 E111 E112 E113 E114 E115 E116 E118 E130 E131 E132 E133 E134 E135 E136 E138",
    ),
    "diabetes_without_complication": Phenotype(
        "Diabetes mellitus without complication",
        49,
        "24900 25000 25001 7902 7915 7916 V4585 V5391 V6546",
        "E089 E099 E109 E119 E139 R73 R81 R824 Z4681 Z9641",
    ),
    "lipid_disorders": Phenotype(
        "Disorders of lipid metabolism",
        53,
        "2720 2721 2722 2723 2724",
        "E780 E781 E782 E783 E784 E785",
    ),
    "essential_hypertension": Phenotype(
        "Essential hypertension",
        98,
        "4011 4019",
        "I10",
    ),
    "fluid_and_electrolyte_disorders": Phenotype(
        "Fluid and electrolyte disorders",
        55,
        "2760 2761 2762 2763 2764 2765 27669 2767 2768 2769 9951 =2766",
        "E86 E870 E871 E872 E873 E874 E875 E876 E8770 E8779 E878",
    ),
    "gastrointestinal_hemorrhage": Phenotype(
        "Gastrointestinal hemorrhage",
        153,
        "4560 45620 5307 53082 5310 5312 5314 5316 5320 5322 5324 5326 5330 5332 5334 5336 5340 5342 5344 5346 "
        "5693 578",
        "I8501 I8511 K250 K252 K254 K256 K260 K262 K264 K266 K270 K272 K274 K276 K280 K282 K284 K286 K625 K920 "
        "K921 K922",
    ),
    "hypertension_with_complications": Phenotype(
        "Hypertension with complications and secondary hypertension",
        99,
        "4010 402 403 404 405 4372",
        "I11 I12 I13 I15 I16 I674 N262",
    ),
    "other_liver_diseases": Phenotype(
        "Other liver diseases",
        151,
        "570 5715 5716 5718 5719 572 5730 5734 5735 5738 5739 7824 7891 78959 7904 7905 7948 =7895 V427",
        "K7041 K710 K711 K717 K718 K719 K72 K74 K750 K751 K7589 K759 K76 K77 R160 R162 R17 R74 Z944",
    ),
    "other_lower_respiratory_disease": Phenotype(
        "Other lower respiratory disease",
        133,
        "5131 514 515 516 5172 5178 5183 5184 51889 5194 5198 5199 7825 7860 7862 7863 7864 78652 7866 7867 7868 "
        "7869 7931 7942 V126 V426",
        "J182 J22 J81 J82 J84 J852 J853 J984 J986 J988 J989 J99 R042 R048 R049 R05 R060 R062 R063 R064 R066 R068 "
        "R069 R071 R0781 R0902 R093 R230 R91 Z870 Z942",
    ),
    "other_upper_respiratory_disease": Phenotype(
        "Other upper respiratory disease",
        134,
        "470 471 472 476 4770 4772 4778 4779 478 5191 5192 5193 7841 7844 7847 7848 78499 7861 =7849 V414 V440 V550",
        "J300 J301 J302 J308 J309 J31 J33 J34 J37 J38 J39 J980 J985 R040 R041 R061 R065 R067 R070 R0981 R196 R49 "
        "Z430 Z930 Z963",
    ),
    "pleurisy_pneumothorax_collapse": Phenotype(
        "Pleurisy; pneumothorax; pulmonary collapse",
        130,
        "510 5110 5111 51189 5119 5120 5128 5180 5181 5182 =5118",
        "J86 J90 J918 J92 J93 J94 J981 J982 J983 R091",
    ),
    "pneumonia": Phenotype(
        "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)",
        122,
        "00322 0203 0204 0205 0212 0221 0310 0391 0521 0551 0730 0830 1124 1140 1144 1145 11505 11515 11595 1304 "
        "1363 480 481 482 483 484 485 486 5130 5171",
        "A0103 A0222 A202 A212 A221 A310 A3701 A3711 A430 A481 B012 B052 B0681 B250 B371 B380 B381 B382 B390 B391 "
        "B392 B583 B59 B7781 J12 J13 J14 J15 J16 J17 J180 J181 J188 J189 J851",
    ),
    "respiratory_failure": Phenotype(
        "Respiratory failure; insufficiency; arrest (adult)",
        131,
        "5173 5185 51881 51882 51883 51884 7991 V461 V462",
        "J80 J96 R0901 R092 Z991 Z9981",
    ),
    "septicemia": Phenotype(
        "Septicemia (except in labor)",
        2,
        "0031 0202 0223 0362 038 0545 449 77181 7907 99591 99592",
        "A021 A207 A227 A267 A327 A392 A393 A394 A40 A41 A427 A5486 B007 B377 I76 P36 R6520",
    ),
    "shock": Phenotype(
        "Shock",
        249,
        "7855",
        "R57 R6521",
    ),
}
"""The phenotypes by the name of their outcome column."""


def phenotypes_of(diagnoses: pd.DataFrame) -> pd.DataFrame:
    """Which phenotypes each hospital admission was billed with.

    Args:
        diagnoses: `hadm_id`, `icd_code` (with or without the dot) and `icd_version` (9 or 10).

    Returns:
        One row an admission that has a code at all, index `hadm_id`; a column a phenotype, 0.0 or 1.0.
    """
    words = diagnoses["icd_code"].str.replace(".", "", regex=False).str.strip().str.upper()
    keys = pd.MultiIndex.from_arrays([diagnoses["icd_version"], words])
    place, distinct = keys.factorize()
    beginnings = _beginnings()
    # -1 for a code of none of the 25.
    of_code = np.array([_phenotype(beginnings, version, code) for version, code in distinct], np.int64)
    admission, admissions = diagnoses["hadm_id"].factorize()
    billed = np.zeros((len(admissions), len(PHENOTYPES) + 1), np.float32)
    billed[admission, of_code[place]] = 1
    return pd.DataFrame(billed[:, :-1], index=pd.Index(admissions, name="hadm_id"), columns=list(PHENOTYPES))


def _beginnings() -> dict[tuple[int, str], int]:
    """The number of the phenotype by ICD version and beginning of a code (or `=` and a whole code)."""
    return {
        (version, beginning): number
        for number, phenotype in enumerate(PHENOTYPES.values())
        for version, listed in ((9, phenotype.icd9), (10, phenotype.icd10))
        for beginning in listed.split()
    }


def _phenotype(beginnings: dict[tuple[int, str], int], version: int, code: object) -> int:
    if not isinstance(code, str):
        return -1
    tried = (f"={code}", *(code[:length] for length in range(3, len(code) + 1)))
    return next((beginnings[version, text] for text in tried if (version, text) in beginnings), -1)
