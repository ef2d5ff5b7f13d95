"""Laws of the report: one file, plain words, nothing from outside."""

import dataclasses
import html.parser
import re

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.fusion.evaluation import evaluate, paired_difference
from chiasm.fusion.report import Contributions, Report, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and holds that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def full_report():
    generator = np.random.default_rng(0)
    risk = generator.random(80)
    died = (generator.random(80) < risk).astype(int)
    key = {"subject_id": np.arange(80), "prediction_time": pd.Timestamp("2024-01-01")}
    outcomes = pd.DataFrame({**key, "died": died, "days": risk * 10})
    cohort = Cohort(outcomes)
    fused = pd.concat(
        [pd.DataFrame({**key, "outcome": name, "risk": risk, "status": "ok"}) for name in ("died", "days")]
    )
    labs = pd.DataFrame({**key, "outcome": "died", "risk": risk[::-1], "status": "ok"})
    return Report(
        title="ICU <script>alert(1)</script> & mortality",
        evaluations={
            "fused": evaluate(fused, cohort, resamples=20),
            "labs <b>alone": evaluate(labs, cohort, resamples=0),
        },
        summary="A summary.",
        synthetic=True,
        facts={"Recipe": "icu-mortality"},
        differences={"Does fusion help?": paired_difference(fused, labs, cohort, outcome="died", resamples=20)},
        curves={"fused": (risk, died), "labs $x_1$ <b>alone": (risk[::-1], died)},
        curves_outcome="died",
        missingness=pd.DataFrame(
            {
                "model": ["fused", "fused", "labs $x_1$ <b>alone", "labs $x_1$ <b>alone"] * 2,
                "withheld": ["labs"] * 4 + ["image"] * 4,
                "share": [0.0, 1.0] * 4,
                "AUROC": [0.8, 0.6, 0.7, 0.5, 0.8, 0.7, 0.7, 0.7],
                "low": 0.4,
                "high": 0.9,
            }
        ),
        missingness_verdict="Fused is nowhere far below the rest.",
        attrition=pd.DataFrame({"step": ["all", "adults"], "patients": [100, 80], "samples": [110, 80]}),
        remarks=["12 images could not be read."],
        history=[{"epoch": k, "train_loss": 1 / (k + 1), "valid_loss": 1.1 / (k + 1)} for k in range(4)],
        contributions=Contributions("died", 0.1, {"image": 0.3, "labs": -0.05}, 0.35, patient="the patient in row 17"),
    )


@pytest.fixture(scope="module")
def page(full_report, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(full_report, path)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_report_parses_and_every_tag_is_closed(page):
    parsed = Page(page)
    assert parsed.tags.count("svg") == 5
    assert parsed.tags.count("h1") == 1


def test_nothing_comes_from_outside_the_file(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(parsed.tags)
    for _, name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith("#")
        assert not name.startswith("on")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_ids_are_unique_and_references_lead_to_one(page):
    attributes = Page(page).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    wanted = {value[1:] for _, name, value in attributes if name == "xlink:href"}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert len(ids) == len(set(ids))
    assert wanted <= set(ids)


def test_text_is_shown_as_text_and_never_read_as_html(page):
    assert "<script" not in page
    assert "ICU &lt;script&gt;alert(1)&lt;/script&gt; &amp; mortality" in page
    parsed = Page(page)
    assert "b" not in parsed.tags
    assert "labs $x_1$ <b>alone" in parsed.text  # in the legend of the plots, as it was given


def test_it_says_that_it_is_no_medical_device_and_that_data_are_synthetic(full_report, page, tmp_path):
    assert "Not a medical device; research use." in Page(page).text
    assert "The data are synthetic" in Page(page).text
    write_report(dataclasses.replace(full_report, synthetic=False), tmp_path / "real.html")
    real = Page((tmp_path / "real.html").read_text()).text
    assert "Not a medical device; research use." in real
    assert "synthetic" not in real


def test_every_table_has_a_caption_and_every_header_a_scope(page):
    parsed = Page(page)
    assert parsed.tags.count("caption") == parsed.tags.count("table") >= 6
    scopes = [value for tag, name, value in parsed.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == parsed.tags.count("th")
    assert set(scopes) == {"row", "col"}


def test_plots_have_a_description_for_those_who_do_not_see_them(page):
    described = [value for tag, name, value in Page(page).attributes if tag == "svg" and name == "aria-label"]
    assert len(described) == 5
    assert any(value.startswith("ROC and precision-recall curves of died") for value in described)
    assert "AUROC of died as a modality is withheld from more and more patients: labs, image" in described


def test_the_numbers_of_every_section_are_there(full_report, page):
    text = Page(page).text
    fused = full_report.evaluations["fused"]
    value, _, interval = fused.cell("died", "AUROC").partition(" ")
    assert f"{value} {interval}" in re.sub(r"\s+", " ", text)
    for shown in (
        "all 100 110",
        "adults 80 80",
        "12 images could not be read.",
        "the patient in row 17",
        "without image",
    ):
        assert shown in text
    assert str(full_report.differences["Does fusion help?"]) in text
    assert "When a modality goes missing Fused is nowhere far below the rest." in text
    assert "baseline 0.100 image +0.300 labs -0.050 risk 0.350" in text


def test_sections_without_content_are_left_out(full_report, tmp_path):
    write_report(Report("Small", {"fused": full_report.evaluations["fused"]}), tmp_path / "small.html")
    parsed = Page((tmp_path / "small.html").read_text())
    assert "svg" not in parsed.tags
    for absent in (
        "Curves",
        "Who is in the cohort",
        "Remarks",
        "Training",
        "What one risk",
        "Differences",
        "goes missing",
    ):
        assert absent not in parsed.text


def test_the_same_report_is_the_same_file(full_report, page, tmp_path):
    write_report(full_report, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_writing_a_report_leaves_the_settings_of_matplotlib_as_they_were(full_report, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(full_report, tmp_path / "report.html")
    assert dict(matplotlib.rcParams) == before


def test_unusable_content_is_refused(full_report, tmp_path):
    path = tmp_path / "report.html"
    with pytest.raises(InputError, match="at least one evaluation"):
        write_report(Report("Empty", {}), path)
    with pytest.raises(InputError, match="attrition log lacks samples; expected step, patients, samples"):
        write_report(dataclasses.replace(full_report, attrition=full_report.attrition[["step", "patients"]]), path)
    lacking = full_report.missingness.drop(columns="share")
    with pytest.raises(InputError, match="table of missing modalities lacks share; expected model, withheld, share"):
        write_report(dataclasses.replace(full_report, missingness=lacking), path)
    with pytest.raises(InputError, match="epoch of the training history lacks train_loss"):
        write_report(dataclasses.replace(full_report, history=[{"epoch": 1}]), path)
    with pytest.raises(InputError, match="curve of 'fused' needs labels of both classes"):
        write_report(dataclasses.replace(full_report, curves={"fused": (np.ones(3), np.ones(3))}), path)
    assert not path.exists()


@pytest.mark.parametrize("values", [{}, {"image": 0.1}, {"image": np.nan}])
def test_contributions_that_do_not_add_up_are_refused(values):
    with pytest.raises(InputError, match=r"must add up to the risk: baseline 0.1000 .*, the risk is 0.5000"):
        Contributions("died", 0.1, values, 0.5)
