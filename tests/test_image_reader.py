"""The image reader: one pass over stored values gives what the careful path gives; volumes give slices."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from chiasm.datasets import Cohort, InputError, UnreadableImageError
from chiasm.datasets.fitted import read_fitted
from chiasm.datasets.image_reader import ImageReader
from chiasm.datasets.pixels import read_image, resize, unreadable
from chiasm.datasets.prepared import prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset

NOW = pd.Timestamp("2031-05-17 08:00")
# A level of 255, in which the reader keeps tones.
LEVEL = 1 / 255


def save_dicom(path: Path, values: np.ndarray, **elements: object) -> Path:
    """A DICOM file of these stored values; `elements` replace or add to what describes them."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", pydicom.uid.generate_uid()
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = elements.pop("bits", 8 * values.itemsize)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * values.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    with warnings.catch_warnings():
        # Padding of signed pixels is given as it is.
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        dataset["PixelData"].VR = (
            "OB" if values.itemsize == 1 or dataset.file_meta.TransferSyntaxUID.is_compressed else "OW"
        )
        dataset.save_as(path, enforce_file_format=True)
    return path


def lookup(first: int, entries: list[int], bits: int) -> pydicom.Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return pydicom.Sequence([item])


def stored_values(random: np.random.Generator, shape: tuple[int, int], kind: str, bits: int) -> np.ndarray:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind.startswith("i") else (0, 2**bits)
    smooth = np.add.outer(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1])) / 2
    noisy = low + (high - 1 - low) * (0.7 * smooth + 0.3 * random.random(shape))
    return noisy.astype(kind)


VOI = {
    "none": {},
    "linear": {"WindowCenter": 900, "WindowWidth": 1200},
    "narrow": {"WindowCenter": 1000, "WindowWidth": 3},
    "several": {"WindowCenter": [100, 900], "WindowWidth": [900, 100]},
    "exact": {"WindowCenter": 700.5, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 800, "WindowWidth": 700, "VOILUTFunction": "SIGMOID"},
    "table": {"VOILUTSequence": lookup(200, [int(4095 * (k / 999) ** 2) for k in range(1000)], 12)},
}
MODALITY = {
    "none": {},
    "rescale": {"RescaleSlope": 0.5, "RescaleIntercept": -30},
    "falling": {"RescaleSlope": -1, "RescaleIntercept": 2000},
    "table": {"ModalityLUTSequence": lookup(0, list(range(2000, 0, -2)), 16)},
}


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    size=st.integers(32, 64),
    kind=st.sampled_from(["u1", "i1", "<u2", "<i2"]),
    less=st.integers(0, 4),
    voi=st.sampled_from(list(VOI)),
    modality=st.sampled_from(list(MODALITY)),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    padding=st.none() | st.integers(0, 200),
    syntax=st.sampled_from(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"]),
)
@settings(max_examples=60, deadline=None)
def test_one_pass_gives_what_the_careful_path_gives(
    tmp_path_factory, seed, shape, size, kind, less, voi, modality, photometric, padding, syntax
):
    bits = 8 * np.dtype(kind).itemsize - less
    values = stored_values(np.random.default_rng(seed), shape, kind, bits)
    elements = {"PhotometricInterpretation": photometric, **VOI[voi], **MODALITY[modality]}
    if padding is not None:
        values[: shape[0] // 3] = padding % 2 ** (bits - 1)
        elements["PixelPaddingValue"] = padding % 2 ** (bits - 1)
    path = save_dicom(tmp_path_factory.mktemp("one") / "image.dcm", values, bits=bits, syntax=syntax, **elements)
    reason = unreadable(path)
    if reason is not None:
        with pytest.raises(UnreadableImageError, match=re.escape(reason)):
            read_fitted(str(path), size)
        return
    expected = resize(read_image(path).pixels, size)
    fitted = read_fitted(str(path), size)
    if fitted is None:
        # Whether black is padding is left to the careful path.
        assert max(shape) <= size or expected.max() < 2e-5
    else:
        # Levels of 65,535, and Pillow's float32.
        np.testing.assert_allclose(fitted, expected, atol=2e-5)
    read = ImageReader(size).read(str(path))[0].astype(int)
    assert np.abs(read - np.rint(expected * 255)).max() <= 1


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"]
)
def test_compressed_files_and_other_byte_orders_give_what_the_careful_path_gives(tmp_path, syntax):
    values = stored_values(np.random.default_rng(0), (150, 90), ">u2" if syntax.endswith("1.2.2") else "<u2", 12)
    path = save_dicom(tmp_path / "image.dcm", values, bits=12, WindowCenter=2000, WindowWidth=3000)
    if syntax.endswith("1.2.2"):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID, dataset.PixelData = syntax, values.tobytes()
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    else:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_allclose(read_fitted(str(path), 32), resize(read_image(path).pixels, 32), atol=2e-5)


def test_what_is_no_single_grey_frame_of_up_to_16_bits_is_left_to_the_careful_path(tmp_path):
    tones = stored_values(np.random.default_rng(0), (90, 70), "u1", 8)
    Image.fromarray(tones).save(tmp_path / "grey.png")
    save_dicom(tmp_path / "colour.dcm", np.dstack([tones, tones, tones // 2]))
    save_dicom(tmp_path / "long.dcm", tones.astype("<u4"))
    for name in ("grey.png", "colour.dcm", "long.dcm", ""):
        assert read_fitted(str(tmp_path / name), 32) is None
    colour = ImageReader(32, channels=3).read(str(tmp_path / "colour.dcm"))[0]
    assert colour.shape == (3, 32, 32)
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    grey = ImageReader(32).read(str(tmp_path / "colour.dcm"))[0, 0]
    assert np.abs(grey - luma).max() <= 1
    tripled = ImageReader(32, channels=3).read(str(tmp_path / "grey.png"))[0]
    assert (tripled == tripled[:1]).all()


def test_a_refusal_names_the_file_once(tmp_path):
    values = stored_values(np.random.default_rng(0), (90, 70), "<u2", 16)
    path = save_dicom(tmp_path / "image.dcm", values, RescaleSlope=0, RescaleIntercept=0)
    for wrong in (path, tmp_path / "absent.dcm"):
        with pytest.raises(UnreadableImageError) as refusal:
            ImageReader(32).read(str(wrong))
        assert str(refusal.value).startswith(f"{wrong}: ")
        assert str(refusal.value).count(str(wrong)) == 1


@pytest.mark.parametrize("shape", [(2500, 2048), (500, 33), (33, 500), (1000, 1)])
def test_a_mean_is_that_of_the_pixels_whose_centers_a_new_pixel_holds(tmp_path, shape):
    values = stored_values(np.random.default_rng(1), shape, "<u2", 16)
    path = save_dicom(
        tmp_path / "image.dcm", values, WindowCenter=2**15, WindowWidth=2**16, VOILUTFunction="LINEAR_EXACT"
    )
    rows, columns = (max(1, round(side * 32 / max(shape))) for side in shape)
    place = [
        np.minimum(np.ceil((np.arange(side) + 0.5) * new / side) - 1, new - 1).astype(int)
        for side, new in zip(shape, (rows, columns), strict=True)
    ]
    total, area = np.zeros((rows, columns)), np.zeros((rows, columns))
    np.add.at(total, np.ix_(*place), values / 2**16)
    np.add.at(area, np.ix_(*place), 1)
    fitted = read_fitted(str(path), 32)[0]
    top, left = (32 - rows) // 2, (32 - columns) // 2
    np.testing.assert_allclose(fitted[top : top + rows, left : left + columns], total / area, atol=2e-5)
    assert fitted.sum() == pytest.approx(fitted[top : top + rows, left : left + columns].sum())


# Windows


def of_tones(tmp_path: Path) -> tuple[Path, Cohort]:
    """A CT that names a window of its own, and a cohort of it."""
    values = np.add.outer(np.arange(-1000, 600, 20), np.arange(0, 400, 5)).astype("<i2")
    scale = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 40, "WindowWidth": 80}
    path = save_dicom(tmp_path / "ct.dcm", values, **scale)
    images = pd.DataFrame({"subject_id": [1], "time": NOW - pd.Timedelta(hours=1), "path": [str(path)]})
    outcomes = pd.DataFrame({"subject_id": [1], "prediction_time": NOW, "died": [0]})
    return path, Cohort(outcomes=outcomes, images=images)


@pytest.mark.parametrize("window", ["lung", (50, 350), 0])
@pytest.mark.parametrize("size", [32, 96])
def test_a_reader_shows_images_in_the_window_that_it_is_given(tmp_path, window, size):
    path, _ = of_tones(tmp_path)
    expected = resize(read_image(path, window=window).pixels, size)
    read = ImageReader(size, window=window).read(str(path))[0].astype(int)
    assert np.abs(read - np.rint(expected * 255)).max() <= 1


@pytest.mark.parametrize("kept", [False, True])
def test_images_that_were_decoded_in_one_window_are_not_taken_for_those_in_another(tmp_path, kept):
    _, cohort = of_tones(tmp_path)
    cohort = cohort.with_store(tmp_path / "store") if kept else cohort
    seen = [
        prepare(cohort, {"image": ImageReader(32, window=window)}).parts["image"].arrays["pixels"][0].astype(int)
        for window in (None, "lung", "bone", (400, 1800))
    ]
    assert np.abs(seen[0] - seen[1]).mean() > 20
    assert np.abs(seen[1] - seen[2]).mean() > 20
    assert np.array_equal(seen[2], seen[3])


def test_an_image_that_the_reader_s_window_makes_readable_is_kept(tmp_path):
    path, cohort = of_tones(tmp_path)
    image = dcmread(path)
    image.WindowWidth = 0
    image.save_as(path)
    assert len(cohort.keep_readable_images().images) == 0
    kept = cohort.keep_readable_images(window="lung")
    assert kept.exclusions == ()
    assert len(prepare(kept, {"image": ImageReader(32, window="lung")}).parts["image"].arrays["pixels"]) == 1


def test_a_file_that_takes_no_such_window_is_named(tmp_path):
    Image.fromarray(np.arange(4096).reshape(64, 64).astype(np.uint8)).save(tmp_path / "shades.png")
    for window, told in (("lung", "a PNG names no windows"), ((40, 80), "window is for a PNG or TIFF of one channel")):
        with pytest.raises(InputError, match=rf"shades\.png: {told}") as refusal:
            ImageReader(32, window=window).read(str(tmp_path / "shades.png"))
        assert not isinstance(refusal.value, UnreadableImageError)


def test_a_window_that_no_file_could_have_is_refused():
    for window in ("liver", (40, 0), True):
        with pytest.raises(InputError, match="window: expected an index from 0"):
            ImageReader(32, window=window)


# Volumes


def save_series(folder: Path, count: int) -> Path:
    """CT slices from foot to head, of which slice k is k × 10 % of the window."""
    folder.mkdir()
    for k in range(count):
        values = np.full((40, 40), 100 * k, "<i2")
        place = {
            "ImagePositionPatient": [0, 0, 5 * k],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1, 1],
        }
        scale = {
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
            "WindowCenter": 500,
            "WindowWidth": 1000,
            "VOILUTFunction": "LINEAR_EXACT",
        }
        names = {
            "PatientID": "7",
            "StudyInstanceUID": "1.2.5",
            "SeriesInstanceUID": "1.2.6",
            "FrameOfReferenceUID": "1.2.7",
        }
        save_dicom(folder / f"{count - k}.dcm", values, Modality="CT", **place, **scale, **names)
    return folder


def of(*paths: Path) -> Cohort:
    outcomes = pd.DataFrame({"subject_id": range(len(paths)), "prediction_time": NOW})
    return Cohort(
        outcomes, images=pd.DataFrame({"subject_id": range(len(paths)), "time": NOW, "path": map(str, paths)})
    )


@pytest.mark.parametrize("stored", [False, True])
def test_a_volume_gives_slices_spread_through_it_and_a_file_gives_one_image(tmp_path, stored):
    series = save_series(tmp_path / "series", 9)
    Image.fromarray(np.full((50, 50), 204, np.uint8)).save(tmp_path / "single.png")
    cohort = of(series, tmp_path / "single.png")
    if stored:
        cohort = cohort.with_store(tmp_path / "store")
    part = prepare(cohort, {"image": ImageReader(32, slices=3)})[[0, 1]].parts["image"]
    assert part.patient.tolist() == [0, 0, 0, 1]
    # Slices 1, 4 and 7 of 0 to 8, at 10, 40 and 70 % of white.
    assert part.pixels[:, 0, 16, 16].tolist() == [26, 102, 178, 204]
    triple = prepare(cohort, {"image": ImageReader(32, channels=3)})[[0]].parts["image"].pixels
    assert triple[0, :, 16, 16].tolist() == [76, 102, 128]


def test_a_slice_that_changed_is_seen(tmp_path):
    series = save_series(tmp_path / "series", 5)
    cohort, reader = of(series).with_store(tmp_path / "store"), ImageReader(32, slices=5)
    before = prepare(cohort, {"image": reader})[[0]].parts["image"].pixels
    path = series / "3.dcm"
    dataset = pydicom.dcmread(path)
    dataset.PixelData = np.full((40, 40), 900, "<i2").tobytes()
    dataset.save_as(path)
    after = prepare(cohort, {"image": reader})[[0]].parts["image"].pixels
    assert [int((one != other).any()) for one, other in zip(before, after, strict=True)] == [0, 0, 1, 0, 0]


def test_a_volume_of_fewer_slices_than_channels_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match="series: it has fewer slices than the 3 channels of an image"):
        ImageReader(32, channels=3).read(str(save_series(tmp_path / "series", 2)))


# Settings, mean and spread


@pytest.mark.parametrize("setting", [{"size": 31}, {"most": 0}, {"slices": 0}])
def test_settings_of_an_image_reader_that_make_no_sense_are_refused(setting):
    with pytest.raises(InputError, match="expected at least 32 pixels, 1 file and 1 image of a volume"):
        ImageReader(**setting)
    with pytest.raises(InputError, match=r"channels is 2; expected 1 \(grey\) or 3 \(colour\)"):
        ImageReader(channels=2)


@pytest.mark.parametrize("stored", [False, True])
def test_mean_and_spread_are_those_of_all_pixels_of_the_images_that_samples_see(tmp_path, stored):
    paths = [tmp_path / f"{k}.png" for k in range(70)]
    tones = np.random.default_rng(0).integers(0, 256, (70, 32, 32), np.uint8)
    for path, own in zip(paths, tones, strict=True):
        Image.fromarray(own).save(path)
    cohort = of(*paths, paths[0])
    if stored:
        cohort = cohort.with_store(tmp_path / "store")
    reader = ImageReader(32)
    reader.fit(cohort)
    assert reader.mean_ == pytest.approx((np.concatenate([tones, tones[:1]]) / 255).mean(), abs=1e-4)
    assert reader.std_ == pytest.approx((tones / 255).std(), abs=1e-4)
    reader.fit(cohort.keep(np.arange(71) == 3, why="one"))
    assert reader.mean_ == pytest.approx((tones[3] / 255).mean(), abs=1e-12)
    assert reader.std_ == pytest.approx((tones[3] / 255).std(), abs=1e-12)
    again = ImageReader(32)
    again.restore(reader.state())
    assert again.state() == reader.state()


def test_a_cohort_without_images_is_fitted_and_packed_to_nothing(tmp_path):
    bare = Cohort(pd.DataFrame({"subject_id": [1], "prediction_time": [NOW]}))
    for cohort in (bare, bare.with_store(tmp_path / "store")):
        reader = ImageReader(32)
        reader.fit(cohort)
        assert reader.state() == ImageReader(32).state()
        samples = prepare(cohort, {"image": reader})
        assert samples.empty.all()
        assert samples[[0]].parts["image"].pixels.shape == (0, 1, 32, 32)
