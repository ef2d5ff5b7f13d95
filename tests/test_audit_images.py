"""Copies of an image are found whatever was done to them; none is invented among images that resemble each other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort
from chiasm.datasets.audit_candidates import CLOSEST, FEW, candidates, turned
from chiasm.datasets.audit_copies import same_pictures
from chiasm.datasets.audit_images import _look, look_at, shared_pictures
from chiasm.datasets.audit_overlay import grounds, layers, overlaid
from chiasm.datasets.phantom import draw_chest, draw_radiograph
from PIL import Image

REAL = Path(__file__).parents[1].parent / "shared/data/covid"
PATIENTS = 150


def saved(plane: np.ndarray, path: Path) -> str:
    Image.fromarray(np.rint(255 * np.clip(plane, 0, 1)).astype(np.uint8)).save(path)
    return str(path)


def copied(path: str, folder: Path, random: np.random.Generator) -> str:
    """A file's picture cropped by 1 to 3 % a side, turned by 1 to 3 degrees, resized and compressed."""
    image = Image.open(path).convert("L")
    image = image.rotate(random.uniform(1, 3) * random.choice([-1, 1]), Image.Resampling.BICUBIC)
    left, right, top, bottom = random.uniform(0.01, 0.03, 4)
    wide, high = image.size
    image = image.crop((round(left * wide), round(top * high), round((1 - right) * wide), round((1 - bottom) * high)))
    size = random.uniform(0.8, 1.2)
    image = image.resize((round(size * image.width), round(size * image.height)), Image.Resampling.BICUBIC)
    target = folder / f"copy of {Path(path).name}.jpg"
    image.save(target, quality=int(random.integers(60, 90)))
    return str(target)


def found(paths: list[str], patient: np.ndarray) -> set[frozenset[str]]:
    """Files that stand together as one picture of several patients."""
    images = pd.DataFrame({"subject_id": patient, "time": pd.Timestamp("2031-05-01"), "path": paths})
    outcomes = pd.DataFrame({"subject_id": np.unique(patient), "prediction_time": pd.Timestamp("2031-05-02")})
    own = Cohort(outcomes=outcomes.assign(died=0), images=images).images
    groups = shared_pictures(look_at(SimpleNamespace(images=own), own["subject_id"].to_numpy()))[1]
    return {frozenset(own["path"].iloc[group.rows]) for group in groups}


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory) -> list[str]:
    """Radiographs of as many patients, of one model of the chest."""
    folder, random = tmp_path_factory.mktemp("radiographs"), np.random.default_rng(3)
    chests = [draw_chest(random, consolidation=bool(k % 4 == 0)) for k in range(PATIENTS)]
    return [saved(0.8 * draw_radiograph(chest, random), folder / f"{k}.png") for k, chest in enumerate(chests)]


def test_nothing_is_invented_among_radiographs_of_one_model_of_the_chest(radiographs):
    assert found(radiographs, np.arange(PATIENTS)) == set()


def test_cropped_and_turned_copies_are_found_among_radiographs_that_resemble_each_other(radiographs, tmp_path):
    random = np.random.default_rng(0)
    copies = [copied(path, tmp_path, random) for path in radiographs[::5]]
    wanted = set(map(frozenset, zip(radiographs[::5], copies, strict=True)))
    assert found([*radiographs, *copies], np.arange(PATIENTS + len(copies))) == wanted


def test_a_copy_is_none_where_it_is_of_the_same_patient(radiographs, tmp_path):
    copy = copied(radiographs[0], tmp_path, np.random.default_rng(0))
    assert found([*radiographs, copy], np.append(np.arange(PATIENTS), 0)) == set()


def test_exposures_of_one_phantom_are_no_copies_of_each_other(tmp_path):
    random = np.random.default_rng(4)
    chest = draw_chest(random, consolidation=True)
    paths = [saved(0.8 * draw_radiograph(chest, random), tmp_path / f"{k}.png") for k in range(40)]
    assert found(paths, np.arange(40)) == set()


@pytest.mark.skipif(not REAL.is_dir(), reason="the COVID-19 collection is not there")
def test_cropped_and_turned_copies_are_found_among_real_radiographs_and_none_invented(tmp_path):
    table, random = pd.read_csv(REAL / "metadata.csv"), np.random.default_rng(0)
    paths, patient = [str(REAL / path) for path in table["image"]], pd.factorize(table["patientid"])[0]
    copies = [copied(path, tmp_path, random) for path in paths[::10]]
    wanted = set(map(frozenset, zip(paths[::10], copies, strict=True)))
    others = patient.max() + 1 + np.arange(len(copies))
    assert found([*paths, *copies], np.concatenate([patient, others])) == wanted


@pytest.mark.parametrize("count", [2, FEW, FEW + 1, 20])
def test_a_copy_is_found_among_however_few(radiographs, tmp_path, count):
    copy = copied(radiographs[0], tmp_path, np.random.default_rng(1))
    assert found([*radiographs[: count - 1], copy], np.arange(count)) == {frozenset([radiographs[0], copy])}


def test_many_copies_of_one_picture_stand_together(radiographs, tmp_path):
    random, copies = np.random.default_rng(2), []
    for k in range(12):
        (tmp_path / str(k)).mkdir()
        copies.append(copied(radiographs[0], tmp_path / str(k), random))
    assert found([*radiographs, *copies], np.arange(PATIENTS + 12)) == {frozenset([radiographs[0], *copies])}


def test_the_cost_of_images_that_are_all_alike_grows_with_their_number():
    random = np.random.default_rng(0)
    some = random.integers(60, 190, (10, 64, 64))
    cells = np.stack([some[k % 10] + random.integers(-9, 10, (64, 64)) for k in range(300)]).astype(np.uint8)
    pairs, ordinary = candidates(cells, np.arange(300))
    assert 0 < len(pairs) <= CLOSEST * 300
    assert len(ordinary) <= 384
    assert len({frozenset(pair) for pair in pairs[:, :2].tolist()}) == len(pairs)


def test_no_images_are_no_pairs():
    assert same_pictures(np.zeros((0, 64, 64), np.uint8), np.zeros(0, np.int64)).shape == (0, 2)


@pytest.mark.parametrize("turn", range(16))
def test_a_copy_is_found_in_every_orientation_and_as_a_negative(radiographs, turn):
    cells = np.stack([_look(path).cells for path in radiographs[:20]])
    cells[19] = turned(cells[3], turn)
    assert same_pictures(cells, np.arange(20)).tolist() == [[3, 19]]


def test_a_picture_laid_over_its_shifted_and_stretched_self_agrees(radiographs):
    image = Image.open(radiographs[0])
    moved = image.transform(
        (128, 128), Image.Transform.AFFINE, (0.97, 0.03, 1, -0.03, 0.98, 3), Image.Resampling.BICUBIC
    )
    one, other = (layers(np.asarray(shown.resize((64, 64), Image.Resampling.BOX))) for shown in (image, moved))
    assert overlaid(one, one, grounds(one)) == pytest.approx(1)
    assert overlaid(other, one, grounds(one)) > 0.9
    assert overlaid(one, other, grounds(other)) > 0.9


def test_pictures_that_share_nothing_are_not_alike():
    random = np.random.default_rng(0)
    one, other = (layers(random.integers(0, 256, (64, 64)).astype(np.uint8)) for _ in range(2))
    assert abs(overlaid(one, other, grounds(other))) < 0.2


def test_an_image_without_detail_is_compared_with_none(tmp_path):
    even = np.linspace(0, 1, 128)[:, None] * np.ones(128)
    assert _look(saved(even, tmp_path / "even.png")).cells is None
    noisy = even + np.random.default_rng(0).normal(0, 0.05, even.shape)
    assert _look(saved(noisy, tmp_path / "noisy.png")).cells is not None
