"""Series become volumes in their true order and spacing, or are refused; and what 2-D models see of them."""

import io
import warnings
from datetime import datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest
from chiasm.datasets.errors import InputError, UnreadableImageError
from chiasm.datasets.pixels import ImageFile, read_image, resize
from chiasm.datasets.volumes import Volume, scale_by_percentiles, slabs
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

SECRET = "SECRET^PATIENT"
# Cosines of a row and a column: axial, and a coronal plane turned by 30° about the patient's axis.
AXIAL = [1, 0, 0, 0, 1, 0]
TURNED = [float(np.cos(np.pi / 6)), float(np.sin(np.pi / 6)), 0, 0, 0, -1]
SHAPE = (6, 8)


def stored_values(number: int) -> np.ndarray:
    """Of slice `number`: all its own, between 0 and 2,000."""
    return np.random.default_rng(number).integers(0, 2000, SHAPE).astype("<i2")


def ct_slice(number: int, **elements: object) -> Dataset:
    """Slice `number` of an axial CT, 2.5 mm above the one before; `elements` replace or add (None removes)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", "1.2.4", "1.2.5"
    dataset.PatientName, dataset.PatientID, dataset.Modality = SECRET, "SECRET-7", "CT"
    dataset.AcquisitionDateTime = f"202402291314{number:02d}"
    dataset.Rows, dataset.Columns = SHAPE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
    dataset.ImageOrientationPatient, dataset.PixelSpacing = AXIAL, [0.7, 0.5]
    dataset.ImagePositionPatient = [-100, -50, 2.5 * number]
    dataset.PixelData = stored_values(number).tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def data_of(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(
            stream, enforce_file_format=True, implicit_vr=False, little_endian=syntax != ExplicitVRBigEndian
        )
    return stream.getvalue()


def saved(folder: Path, *slices: Dataset) -> Path:
    """A folder of these slices, under names whose order says nothing."""
    for place, dataset in enumerate(slices):
        (folder / f"{(place * 7 + 3) % 100:02d}.dcm").write_bytes(data_of(dataset))
    return folder


def refused(folder: Path | list[Path], reason: str, **settings: object) -> None:
    """The series is refused in one line that names it, and with nothing of the header but the reason."""
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(folder, **settings)
    message = str(caught.value)
    assert message.startswith(str(folder[0].parent if isinstance(folder, list) else folder))
    assert "\n" not in message
    assert "SECRET" not in message.upper()


# Order, spacing and values


def test_slices_are_ordered_by_their_place_and_equal_to_images_of_their_own(tmp_path: Path):
    numbers = [4, 0, 3, 1, 2]
    folder = saved(tmp_path, *(ct_slice(number) for number in numbers))
    volume = read_image(folder, window="mediastinum")
    assert isinstance(volume, Volume)
    assert volume.pixels.dtype == np.float32
    for number in range(5):
        # 50 ± 175 HU, by hand.
        expected = np.clip((stored_values(number) - 1000.0 - 50) / 350 + 0.5, 0, 1)
        np.testing.assert_allclose(volume.pixels[number], expected, atol=2e-7)
        file = folder / f"{(numbers.index(number) * 7 + 3) % 100:02d}.dcm"
        assert np.array_equal(volume.pixels[number], read_image(file, window="mediastinum").pixels[0])
    assert volume.spacing == (2.5, 0.7, 0.5)
    assert (volume.axes, volume.tilt, volume.window) == ("SPL", 0, "mediastinum, LINEAR_EXACT 50/350")
    assert (volume.modality, volume.study_uid, volume.series_uid) == ("CT", "1.2", "1.2.4")
    assert volume.acquired == datetime(2024, 2, 29, 13, 14, 4)
    assert "SECRET" not in repr(volume)


@pytest.mark.parametrize(
    ("orientation", "axes"),
    [
        (AXIAL, "SPL"),
        ([0, 1, 0, 0, 0, -1], "RIP"),
        ([1, 0, 0, 0, 0, -1], "PIL"),
        (TURNED, "PIL"),
        ([-1, 0, 0, 0, 1, 0], "IPR"),
    ],
)
def test_slices_follow_the_normal_of_any_plane(tmp_path: Path, orientation: list[float], axes: str):
    normal = np.cross(orientation[:3], orientation[3:])
    slices = [
        ct_slice(
            number, ImageOrientationPatient=orientation, ImagePositionPatient=list(np.round(3 * number * normal, 6))
        )
        for number in (2, 0, 1)
    ]
    volume = read_image(saved(tmp_path, *slices), window=(0, 2000))
    for number in range(3):
        expected = np.clip((stored_values(number) - 1000) / 2000 + 0.5, 0, 1)
        np.testing.assert_allclose(volume.pixels[number], expected, atol=2e-7)
    assert volume.axes == axes
    np.testing.assert_allclose(volume.spacing, (3, 0.7, 0.5), atol=1e-5)


def test_a_tilted_gantry_is_told_in_degrees(tmp_path: Path):
    # The table moves along the patient's axis while the planes lean by 20°.
    lean = np.radians(20)
    orientation = [1, 0, 0, 0, float(np.cos(lean)), float(np.sin(lean))]
    slices = [
        ct_slice(number, ImageOrientationPatient=orientation, ImagePositionPatient=[0, 0, 4 * number])
        for number in range(4)
    ]
    volume = read_image(saved(tmp_path, *slices))
    assert volume.tilt == pytest.approx(20, abs=1e-6)
    assert volume.spacing[0] == pytest.approx(4 * np.cos(lean))


def test_each_slice_has_its_own_rescale_and_padding(tmp_path: Path):
    slices = [
        ct_slice(number, RescaleSlope=number + 1, RescaleIntercept=-10 * number, PixelPaddingValue=0, Modality="PT")
        for number in range(3)
    ]
    values = stored_values(0)
    values[0] = 0
    slices[0].PixelData = values.tobytes()
    volume = read_image(saved(tmp_path, *slices), window=(1000, 2000))
    assert not volume.pixels[0, 0].any()
    for number in (1, 2):
        measured = stored_values(number) * (number + 1.0) - 10 * number
        np.testing.assert_allclose(volume.pixels[number], np.clip(measured / 2000, 0, 1), atol=2e-7)


def test_without_one_window_for_all_percentiles_of_the_whole_volume_decide(tmp_path: Path):
    slices = [ct_slice(number, WindowCenter=100 * number, WindowWidth=400) for number in range(3)]
    slices[1].PixelPaddingValue = int(stored_values(1)[0, 0])
    volume = read_image(saved(tmp_path, *slices))
    measured = np.stack([stored_values(number) - 1000.0 for number in range(3)])
    padding = measured == measured[1, 0, 0]
    padding[[0, 2]] = False
    low, high = np.percentile(measured[~padding], (0.5, 99.5), method="inverted_cdf")
    expected = np.where(padding, 0, np.clip((measured - low) / (high - low), 0, 1))
    np.testing.assert_allclose(volume.pixels, expected, atol=2e-7)
    assert volume.window == f"percentiles 0.5 to 99.5, {low:g} to {high:g}"
    with pytest.raises(InputError, match="its slices name different windows"):
        read_image(tmp_path, window=0)


def test_where_a_part_of_a_volume_is_padding_the_whole_decides():
    pixels = np.random.default_rng(4).random((3, 5, 7), dtype=np.float32)
    pixels.reshape(-1)[::5] = np.nan
    low, high = np.nanmin(pixels), np.nanmax(pixels)
    expected = np.nan_to_num((pixels.astype(float) - low) / (float(high) - low), nan=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chiasm.datasets.greyscale.LARGEST_SAMPLE", 30)
        assert scale_by_percentiles(pixels, False).startswith("percentiles 0.5 to 99.5")
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_one_window_of_all_slices_is_taken(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(k, WindowCenter=[0, 40], WindowWidth=[1500, 400]) for k in range(3)))
    volume = read_image(folder)
    assert volume.window == "LINEAR 0/1500 (1 of 2)"
    assert np.array_equal(volume.pixels[0], read_image(folder / "03.dcm").pixels[0])
    assert read_image(folder, window=1).window == "LINEAR 40/400 (2 of 2)"
    with pytest.raises(InputError, match="window is 2; the file has 2"):
        read_image(folder, window=2)


def test_a_look_up_table_that_all_slices_share_is_taken(tmp_path: Path):
    def table(last: int) -> Sequence:
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [2, 0, 8], np.array([0, last], "<u2").tobytes()
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
        return Sequence([item])

    same = saved(tmp_path, *(ct_slice(number, VOILUTSequence=table(255)) for number in range(3)))
    assert read_image(same).window == "VOI LUT (1 of 1)"
    other = saved(tmp_path, *(ct_slice(number, VOILUTSequence=table(250 + number)) for number in range(3)))
    assert read_image(other).window.startswith("percentiles")


@pytest.mark.parametrize("windowed", [True, False])
def test_a_volume_of_small_values_bright_is_inverted_once(tmp_path: Path, windowed: bool):
    window = {"window": (0, 2000)} if windowed else {}
    upright = read_image(saved(tmp_path, *(ct_slice(number) for number in range(2))), **window).pixels
    inverted = [ct_slice(number, PhotometricInterpretation="MONOCHROME1") for number in range(2)]
    np.testing.assert_allclose(read_image(saved(tmp_path, *inverted), **window).pixels, 1 - upright, atol=2e-7)


def test_a_list_of_files_and_other_encodings_give_the_same_volume(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number) for number in range(4)))
    expected = read_image(folder, window="bone").pixels
    files = sorted(folder.iterdir(), reverse=True)
    assert np.array_equal(read_image(files, window="bone").pixels, expected)
    assert np.array_equal(read_image([str(file) for file in files], window="bone").pixels, expected)
    packed = [ct_slice(number) for number in range(4)]
    packed[0].compress(RLELossless)
    packed[1].PixelData = stored_values(1).byteswap().tobytes()
    packed[1].file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(read_image(saved(tmp_path, *packed), window="bone").pixels, expected)


def test_a_series_in_a_store_is_read_by_its_url(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number) for number in range(3)))
    store = fsspec.filesystem("memory")
    for file in folder.iterdir():
        store.pipe(f"/ct/{file.name}", file.read_bytes())
    try:
        volume = read_image("memory://ct", window="lung")
        assert np.array_equal(volume.pixels, read_image(folder, window="lung").pixels)
        with pytest.raises(UnreadableImageError, match="memory://empty: there is no such file"):
            read_image("memory://empty")
    finally:
        store.rm("/ct", recursive=True)


def test_what_is_no_image_is_passed_over_and_listed(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number) for number in range(3)))
    (folder / "VERSION").write_text("7")
    (folder / ".DS_Store").write_text("hidden")
    report = ct_slice(9, Rows=None, Columns=None, PixelData=None)
    (folder / "DICOMDIR").write_bytes(data_of(report))
    volume = read_image(folder)
    assert volume.passed_over == (str(folder / "DICOMDIR"), str(folder / "VERSION"))
    refused([folder / "03.dcm", folder / "VERSION"], "VERSION is no DICOM image. Leave it out")


# Refusals


def test_a_missing_slice_is_noticed(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number) for number in (0, 1, 2, 4, 5)))
    refused(folder, r"2.5 mm apart, but 5 mm between 17.dcm and 24.dcm: a slice is missing")


def test_two_spacings_are_refused_and_the_jitter_of_a_table_is_not(tmp_path: Path):
    heights = [0, 5, 10, 20, 30]
    slices = [ct_slice(number, ImagePositionPatient=[0, 0, height]) for number, height in enumerate(heights)]
    refused(saved(tmp_path, *slices), "5 mm between .* or two spacings are mixed|10 mm between")
    heights = [0, 5.1, 10, 14.95, 20]
    slices = [ct_slice(number, ImagePositionPatient=[0, 0, height]) for number, height in enumerate(heights)]
    assert read_image(saved(tmp_path, *slices)).spacing[0] == pytest.approx(5, abs=0.1)


def test_the_same_slice_twice_is_refused(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number) for number in (0, 1, 2, 1)))
    refused(folder, "10.dcm and 24.dcm are the same slice twice. Remove one")


def test_a_slice_whose_patient_cannot_be_read_is_named(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number, PatientID="SECRET") for number in range(3)))
    file = folder / "10.dcm"
    whole = file.read_bytes()
    # (0010,0020), of a value representation that there is not.
    file.write_bytes(whole.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00Z\x00"))
    assert file.read_bytes() != whole
    refused(folder, r"10\.dcm: its element PatientID is malformed")


def test_several_slices_at_one_place_are_refused(tmp_path: Path):
    slices = [ct_slice(number, ImagePositionPatient=[0, 0, number % 3]) for number in range(6)]
    refused(saved(tmp_path, *slices), r"lie at the same place \(and 2 more such pairs\): several times, echoes")


def test_of_several_series_one_is_chosen(tmp_path: Path):
    other = [ct_slice(number, SeriesInstanceUID="1.2.9", SOPInstanceUID=f"1.2.8.{number}") for number in range(2)]
    folder = saved(tmp_path, *(ct_slice(number) for number in range(3)), *other)
    refused(folder, r"it holds 2 series, of so many files each: 1.2.4 \(3\), 1.2.9 \(2\). Choose one with series_uid=")
    assert len(read_image(folder, series_uid="1.2.4").pixels) == 3
    assert read_image(folder, series_uid="1.2.9").series_uid == "1.2.9"
    with pytest.raises(InputError, match="it holds no series of that series_uid, but these: 1"):
        read_image(folder, series_uid="1.2.77")


def test_what_another_series_lacks_does_not_matter(tmp_path: Path):
    capture = ct_slice(9, SeriesInstanceUID="1.2.9", Modality="OT", ImagePositionPatient=None)
    folder = saved(tmp_path, *(ct_slice(number) for number in range(3)), capture)
    assert len(read_image(folder, series_uid="1.2.4").pixels) == 3
    refused(folder, "it holds 2 series")
    refused(folder, "24.dcm: its ImagePositionPatient is absent", series_uid="1.2.9")


def test_an_impossible_window_does_not_matter_where_another_is_given(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number, WindowCenter=1, WindowWidth=0) for number in range(2)))
    assert len(read_image(folder, window="lung").pixels) == 2
    refused(
        folder,
        "03.dcm: its Window Width is 0, .* Give window=.center, width. in its place: to read_image, or to ImageEncoder",
    )


def test_two_patients_never_make_a_volume(tmp_path: Path):
    slices = [ct_slice(number, PatientID=f"SECRET-{number // 2}") for number in range(4)]
    refused(saved(tmp_path, *slices), r"2 patients stand in one study \(Patient ID")
    for dataset in slices[2:]:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.9", "1.9.1"
    refused(saved(tmp_path, *slices), r"2 patients stand in its files \(Patient ID", series_uid="1.9.1")


def test_an_identifier_in_other_letters_or_none_is_no_other_patient(tmp_path: Path):
    names = ("SECRET-7", " secret-7", None)
    folder = saved(tmp_path, *(ct_slice(number, PatientID=name) for number, name in enumerate(names)))
    assert len(read_image(folder).pixels) == 3


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "MR"}, "its slices differ in modality: .*Give the files of one as a list"),
        ({"FrameOfReferenceUID": "1.2.6"}, "differ in Frame of Reference UID .*Their places cannot be compared"),
        ({"Rows": 4, "PixelData": bytes(64)}, "differ in rows or columns: .*Leave out localizers"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "differ in Image Orientation .*Leave out localizers"),
        ({"PixelSpacing": [0.7, 0.6]}, "differ in Pixel Spacing"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "differ in Photometric Interpretation or Presentation"),
    ],
)
def test_slices_that_differ_in_what_a_volume_shares_are_refused(
    tmp_path: Path, elements: dict[str, object], reason: str
):
    refused(saved(tmp_path, ct_slice(0), ct_slice(1), ct_slice(2, **elements), ct_slice(3)), reason)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        (
            {"ImagePositionPatient": None},
            "10.dcm: its ImagePositionPatient is absent.* Give the path of one image file",
        ),
        ({"ImageOrientationPatient": None}, "its ImageOrientationPatient is absent"),
        ({"PixelSpacing": None}, "its PixelSpacing is absent"),
        ({"ImagePositionPatient": [1, 2]}, "its ImagePositionPatient is not 3 numbers"),
        ({"ImagePositionPatient": [1, 2, "1e400"]}, "its ImagePositionPatient is not 3 numbers"),
        ({"PixelSpacing": 1}, "its PixelSpacing is not 2 numbers"),
        ({"PixelSpacing": [0, 1]}, "Image Orientation .Patient. or Pixel Spacing is impossible"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "Image Orientation .Patient. or Pixel Spacing is impossible"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "Image Orientation .Patient. or Pixel Spacing is impossible"),
        ({"Columns": 0}, "its Rows or Columns are absent or impossible"),
        ({"PhotometricInterpretation": "RGB"}, "its pixels are not grey, where a volume is"),
        ({"NumberOfFrames": 2}, "it has several frames without places"),
        ({"PixelData": bytes(10)}, "10.dcm: its pixel data have 10 bytes, where its header makes it 96"),
        ({"RescaleSlope": 0}, "10.dcm: its Rescale Slope is 0"),
    ],
)
def test_a_slice_that_cannot_be_true_is_named(tmp_path: Path, elements: dict[str, object], reason: str):
    refused(saved(tmp_path, ct_slice(0), ct_slice(1, **elements), ct_slice(2)), reason)


def test_slices_that_are_not_stacked_are_refused(tmp_path: Path):
    slices = [ct_slice(k, ImagePositionPatient=[20 * (k % 2), 0, 2.5 * k]) for k in range(4)]
    refused(saved(tmp_path, *slices), "its slices are not stacked along one line")


def test_a_folder_that_holds_no_volume_is_refused(tmp_path: Path):
    refused(tmp_path, "it holds no DICOM image. Give the folder of one series")
    saved(tmp_path, ct_slice(0))
    refused(tmp_path, "it holds one slice, and a volume has two or more. Give the path of the file")
    (tmp_path / "04.dcm").write_text("SECRET PATIENT")
    refused(tmp_path, "04.dcm: it lies among the slices and is no DICOM file")
    (tmp_path / "04.dcm").write_bytes(b"")
    refused(tmp_path, "04.dcm: it is empty")
    refused([tmp_path / "03.dcm", tmp_path], "this is a folder. Give the path of one image file")
    with pytest.raises(UnreadableImageError, match="the list of files: it holds no DICOM image"):
        read_image([])


def test_a_volume_of_padding_is_refused_and_a_slice_of_it_is_black(tmp_path: Path):
    empty = np.full(SHAPE, -2000, "<i2").tobytes()
    slices = [ct_slice(number, PixelPaddingValue=-2000) for number in range(3)]
    slices[1].PixelData = empty
    for window in ("lung", None):
        volume = read_image(saved(tmp_path, *slices), window=window)
        assert not volume.pixels[1].any()
        assert volume.pixels[0].any()
    for dataset in slices:
        dataset.PixelData = empty
    refused(saved(tmp_path, *slices), "all its pixels are padding")


def test_a_window_by_name_is_for_ct_only(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number, Modality="MR") for number in range(2)))
    with pytest.raises(InputError, match=r"03.dcm: a window by name is in Hounsfield units"):
        read_image(folder, window="lung")


def test_a_volume_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = saved(tmp_path, *(ct_slice(number) for number in range(40)))
    monkeypatch.setattr("chiasm.datasets.volumes.decode", None)
    refused(folder, "its 40 slices of 6 x 8 take 7680 bytes, more than the limit of 7000", limit_bytes=7000)


def test_a_file_that_changes_while_the_series_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from chiasm.datasets import volumes

    folder = saved(tmp_path, *(ct_slice(number) for number in range(2)))

    def stacked_then_changed(slices: list) -> object:
        stack = volumes.stacked.original(slices)
        (folder / "10.dcm").write_bytes(data_of(ct_slice(1, Rows=4, PixelData=bytes(64))))
        return stack

    stacked_then_changed.original = volumes.stacked
    monkeypatch.setattr(volumes, "stacked", stacked_then_changed)
    refused(folder, "10.dcm: it changed while it was read")


def test_frame_and_series_uid_are_for_what_has_them(tmp_path: Path):
    folder = saved(tmp_path, *(ct_slice(number) for number in range(2)))
    with pytest.raises(InputError, match="frame is for one file, and this is a series"):
        read_image(folder, frame=0)
    with pytest.raises(InputError, match="series_uid is for a folder or a list of files"):
        read_image(folder / "03.dcm", series_uid="1.2.4")


# Enhanced multi-frame files


def enhanced(heights: list[float], **elements: object) -> Dataset:
    """A multi-frame CT whose frames lie at these heights, each with its own rescale."""

    def group(frame: int) -> Dataset:
        place, tones, item = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, heights[frame]]
        tones.RescaleSlope, tones.RescaleIntercept, tones.RescaleType = 1, -1000 - frame, "HU"
        item.PlanePositionSequence, item.PixelValueTransformationSequence = Sequence([place]), Sequence([tones])
        return item

    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, measures.PixelSpacing = AXIAL, [0.7, 0.5]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([plane]), Sequence([measures])
    own = {"NumberOfFrames": len(heights), "SharedFunctionalGroupsSequence": Sequence([shared])}
    own["PerFrameFunctionalGroupsSequence"] = Sequence([group(frame) for frame in range(len(heights))])
    own["PixelData"] = b"".join(stored_values(frame).tobytes() for frame in range(len(heights)))
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    return ct_slice(0, **own | dict.fromkeys(gone) | elements)


def test_a_multi_frame_file_whose_frames_have_places_is_a_volume(tmp_path: Path):
    path = tmp_path / "enhanced.dcm"
    heights = [6, 0, 3]
    path.write_bytes(data_of(enhanced(heights)))
    volume = read_image(path, window=(0, 2000))
    for place, frame in enumerate(np.argsort(heights)):
        expected = np.clip((stored_values(frame) - 1000.0 - frame) / 2000 + 0.5, 0, 1)
        np.testing.assert_allclose(volume.pixels[place], expected, atol=2e-7)
        assert np.array_equal(volume.pixels[place], read_image(path, frame=int(frame), window=(0, 2000)).pixels[0])
    assert (volume.spacing, volume.axes, volume.modality) == ((3, 0.7, 0.5), "SPL", "CT")
    assert np.array_equal(read_image(tmp_path, window=(0, 2000)).pixels, volume.pixels)
    assert read_image(path, window="lung").window.startswith("lung")


def test_multi_frame_files_that_are_no_volume_are_refused(tmp_path: Path):
    path = tmp_path / "enhanced.dcm"
    for dataset, reason in (
        (enhanced([0, 3, 3]), "frame 1 and frame 2 lie at the same place: several times"),
        (enhanced([0, 3, 9, 12]), "between frame 1 and frame 2: a slice is missing"),
        (enhanced([0, 3, 6], NumberOfFrames=2), "it has not as many places as frames"),
    ):
        path.write_bytes(data_of(dataset))
        refused(path, reason)


# 2.5-D


def test_slabs_are_neighbours_spread_evenly():
    pixels = np.arange(10, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)

    def slices(**settings: int) -> list[list[float]]:
        found = slabs(pixels, **settings)
        assert found.shape[2:] == (2, 3)
        return found[:, :, 0, 0].tolist()

    assert slices() == [[5]]
    assert slices(channels=3) == [[4, 5, 6]]
    assert slices(images=2, channels=3) == [[2, 3, 4], [6, 7, 8]]
    assert slices(images=5) == [[1], [3], [5], [7], [9]]
    assert slices(images=10) == [[k] for k in range(10)]
    assert slices(images=50, channels=9) == [list(range(9)), list(range(1, 10))]
    assert slices(channels=10) == [list(range(10))]


def test_slabs_never_repeat_a_slice_to_fill_up():
    for slices in range(1, 12):
        pixels = np.arange(slices, dtype=np.float32)[:, None, None]
        for images in range(1, 14):
            for channels in range(1, slices + 1):
                found = slabs(pixels, images=images, channels=channels)[:, :, 0, 0]
                assert len(found) == min(images, slices - channels + 1)
                assert len(np.unique(found[:, 0])) == len(found)
                assert np.array_equal(np.diff(found, axis=1), np.ones((len(found), channels - 1)))


@pytest.mark.parametrize(
    ("shape", "settings"),
    [((3, 4), {}), ((3, 4, 5), {"channels": 4}), ((3, 4, 5), {"channels": 0}), ((3, 4, 5), {"images": 0})],
)
def test_slabs_of_what_is_no_volume_are_refused(shape: tuple[int, ...], settings: dict[str, int]):
    with pytest.raises(InputError, match=r"expected .slice, height, width., 1 image or more"):
        slabs(np.zeros(shape, np.float32), **settings)


def test_a_slab_serves_a_2d_network_like_any_image(tmp_path: Path):
    volume = read_image(saved(tmp_path, *(ct_slice(number) for number in range(5))), window="lung")
    (image,) = slabs(volume.pixels, channels=3)
    assert np.array_equal(image, volume.pixels[1:4])
    assert resize(image, 32).shape == (3, 32, 32)


EXAMPLE = """
from chiasm.datasets import read_image, slabs

chest = read_image("ct/", window="lung")  # a folder with one series, a list of files, or a .nii.gz
print(chest.pixels.shape, chest.spacing, chest.axes, chest.window)  # [slice, height, width]; mm
images = slabs(chest.pixels, images=4, channels=3)  # 2.5-D: four images of three neighbouring slices
"""


def test_the_worked_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "ct").mkdir()
    saved(tmp_path / "ct", *(ct_slice(number) for number in range(24)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(EXAMPLE, "README.md", "exec"), names)
    assert capsys.readouterr().out == "(24, 6, 8) (2.5, 0.7, 0.5) SPL lung, LINEAR_EXACT -600/1500\n"
    assert names["images"].shape == (4, 3, 6, 8)


def test_a_volume_and_an_image_in_a_log_show_what_they_are_and_no_pixel():
    volume = Volume(
        np.full((3, 6, 8), 0.123, np.float32), "center 40, width 400", (2.5, 0.7, 0.5), "SPL", study_uid="9"
    )
    assert repr(volume) == "Volume(3 x 6 x 8 float32; 2.5 x 0.7 x 0.5 mm; SPL; center 40, width 400)"
    image = ImageFile(np.full((1, 6, 8), 0.123, np.float32), "all values", study_uid="9")
    assert repr(image) == "ImageFile(1 x 6 x 8 float32; all values)"
