"""NIfTI files become axial volumes that lie like DICOM's, or are refused."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from chiasm.datasets.errors import InputError, UnreadableImageError
from chiasm.datasets.pixels import read_image
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

VALUES = np.random.default_rng(5).integers(-1000, 1000, (5, 6, 7)).astype("<i2")
UPRIGHT = np.diag([0.5, 0.7, 2.5, 1.0])
# Where the fields of NIfTI-1 stand (nifti1.h).
FIELDS = {"dim0": (40, "h"), "dim1": (42, "h"), "dim3": (46, "h"), "datatype": (70, "h"), "bitpix": (72, "h")}
FIELDS |= {"offset": (108, "f"), "slope": (112, "f"), "intercept": (116, "f"), "units": (123, "b")}
FIELDS |= {"qform": (252, "h"), "sform": (254, "h"), "srow": (280, "f")}


def saved(
    folder: Path, values: np.ndarray, affine: np.ndarray = UPRIGHT, kind=nibabel.Nifti1Image, **fields: float
) -> Path:
    """A NIfTI-1 or -2 file; `fields` overwrite numbers of its NIfTI-1 header."""
    data = bytearray(kind(values, affine).to_bytes())
    for name, number in fields.items():
        place, form = FIELDS[name]
        struct.pack_into(f"<{form}", data, place, number)
    path = folder / "scan.nii"
    path.write_bytes(data)
    return path


def shown(values: np.ndarray) -> np.ndarray:
    """`[slice, row, column]` toward head, back and left, of values toward right, front and head."""
    return values[::-1, ::-1].transpose(2, 1, 0)


def refused(path: Path, reason: str, **settings: object) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(path, **settings)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<u4", "<f4", ">f8", "<i8"])
def test_values_of_every_type_are_read(tmp_path: Path, kind: type, compressed: bool, dtype: str):
    values = (VALUES % 100).astype(dtype)
    header = (nibabel.Nifti1Header if kind is nibabel.Nifti1Image else nibabel.Nifti2Header)(
        endianness=">" if dtype.startswith(">") else "<"
    )
    header.set_data_dtype(values.dtype)
    path = tmp_path / "scan.nii"
    path.write_bytes(kind(values, UPRIGHT, header).to_bytes())
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    volume = read_image(path, window=(50, 100))
    np.testing.assert_allclose(volume.pixels, shown(VALUES % 100) / 100, atol=2e-7)
    assert (volume.axes, volume.window) == ("SPL", "LINEAR_EXACT 50/100")
    np.testing.assert_allclose(volume.spacing, (2.5, 0.7, 0.5), atol=1e-6)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PIR", "SLA", "AIL"])
def test_any_order_of_axes_gives_the_same_slices(tmp_path: Path, axes: str):
    turn = ornt_transform(io_orientation(UPRIGHT), axcodes2ornt(axes))
    affine = UPRIGHT @ nibabel.orientations.inv_ornt_aff(turn, VALUES.shape)
    turned = apply_orientation(VALUES, turn)
    assert nibabel.aff2axcodes(affine) == tuple(axes)
    volume = read_image(saved(tmp_path, turned, affine), window=(0, 2000))
    np.testing.assert_allclose(volume.pixels, shown(VALUES) / 2000 + 0.5, atol=2e-7)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.7, 0.5), atol=1e-6)


def test_a_volume_lies_as_the_dicom_series_that_it_was_made_from_would(tmp_path: Path):
    volume = np.zeros((4, 3, 2), np.float32)
    volume[3, 1, 1] = 1
    # DICOM's axes lead to left, back and head (PS3.3 C.7.6.2.1.1), NIfTI's to right, front and head: 3 to the left
    # of the first column, 1 behind the first row, 1 above the first slice.
    path = saved(tmp_path, volume, np.diag([-1.0, -1, 1, 1]))
    assert np.argwhere(read_image(path, window=(0.5, 1)).pixels).tolist() == [[1, 1, 3]]


def test_the_quaternion_is_used_where_there_is_no_matrix(tmp_path: Path):
    image = nibabel.Nifti1Image(VALUES, None)
    image.set_sform(None, 0)
    image.set_qform(np.diag([-0.5, 0.7, 2.5, 1]), 1)
    path = tmp_path / "scan.nii"
    path.write_bytes(image.to_bytes())
    volume = read_image(path, window=(0, 2000))
    np.testing.assert_allclose(volume.pixels, shown(VALUES[::-1]) / 2000 + 0.5, atol=2e-7)


def test_values_are_scaled_as_the_header_says(tmp_path: Path):
    path = saved(tmp_path, VALUES, slope=2.0, intercept=-1000.0)
    np.testing.assert_allclose(read_image(path, window=(-1000, 4000)).pixels, shown(VALUES) / 2000 + 0.5, atol=2e-7)
    plain = read_image(saved(tmp_path, VALUES, slope=0.0, intercept=7.0), window=(0, 2000)).pixels
    np.testing.assert_allclose(plain, shown(VALUES) / 2000 + 0.5, atol=2e-7)


def test_without_a_window_percentiles_decide(tmp_path: Path):
    low, high = np.percentile(VALUES, (0.5, 99.5), method="inverted_cdf").astype(float)
    volume = read_image(saved(tmp_path, VALUES))
    np.testing.assert_allclose(volume.pixels, np.clip((shown(VALUES) - low) / (high - low), 0, 1), atol=2e-7)
    assert volume.window == f"percentiles 0.5 to 99.5, {low:g} to {high:g}"
    assert (volume.modality, volume.acquired, volume.study_uid) == (None, None, None)


def test_a_window_by_name_says_that_it_is_a_ct(tmp_path: Path):
    volume = read_image(saved(tmp_path, VALUES), window="brain")
    np.testing.assert_allclose(volume.pixels, np.clip(shown(VALUES) / 80, 0, 1), atol=2e-7)
    assert volume.window == "brain, LINEAR_EXACT 40/80"


def test_one_volume_of_several_is_chosen(tmp_path: Path):
    several = np.stack([VALUES, VALUES // 2, VALUES // 4], -1)
    for name, data in (("scan.nii", bytes), ("scan.nii.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(data(nibabel.Nifti1Image(several, UPRIGHT).to_bytes()))
        for frame in range(3):
            found = read_image(path, frame=frame, window=(0, 2000)).pixels
            np.testing.assert_allclose(found, shown(VALUES // 2**frame) / 2000 + 0.5, atol=2e-7)
        refused(path, "it has 3 volumes, where one is expected. Choose one with frame=0 to frame=2")
        with pytest.raises(InputError, match="frame is 3; the file has frames 0 to 2"):
            read_image(path, frame=3)


@pytest.mark.parametrize(("units", "millimetres"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 + 8, 1)])
def test_spacing_is_in_millimetres(tmp_path: Path, units: int, millimetres: float):
    spacing = read_image(saved(tmp_path, VALUES, units=units)).spacing
    np.testing.assert_allclose(spacing, np.multiply((2.5, 0.7, 0.5), millimetres), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim0": 2}, "its dimensions are not those of a volume"),
        ({"dim3": -7}, "its dimensions are not those of a volume"),
        ({"dim1": 6}, "it is cut short"),
        ({"dim1": 4}, "it holds more values than its header declares"),
        ({"dim1": 32_767, "dim3": 32_767}, "declares 32767 x 6 x 32767 values, .* more than the limit"),
        ({"datatype": 64}, "its values are no numbers of up to 64 bits"),
        ({"datatype": 32, "bitpix": 64}, "its values are no numbers of up to 64 bits"),
        ({"datatype": 128, "bitpix": 24}, "its values are no numbers of up to 64 bits"),
        ({"datatype": 77}, "it cannot be read as NIfTI. The file is damaged"),
        ({"offset": 0}, "its values start at an impossible place"),
        ({"offset": float("nan")}, "its values start at an impossible place"),
        ({"offset": 352.5}, "its values start at an impossible place"),
        ({"slope": 2, "intercept": float("inf")}, "it cannot be read as NIfTI. The file is damaged"),
        ({"sform": 0, "qform": 0}, "it does not say how it lies in the patient"),
        ({"srow": 0}, "its affine is impossible"),
        ({"srow": float("nan")}, "its affine is impossible"),
        ({"units": 5}, "its unit of space is unknown"),
    ],
)
def test_headers_that_cannot_be_true_are_refused(tmp_path: Path, fields: dict[str, float], reason: str):
    refused(saved(tmp_path, VALUES, **fields), reason)


def test_undeclared_nan_is_refused(tmp_path: Path):
    values = VALUES.astype("<f4")
    values[0, 0, 0] = np.nan
    for window in (None, (0, 100)):
        refused(saved(tmp_path, values), "its values hold NaN or infinity", window=window)
    values[0, 0, 0] = 1e38
    refused(saved(tmp_path, values, slope=1e10), "its values hold NaN or infinity")


def test_pairs_of_files_and_other_gzip_are_refused(tmp_path: Path):
    path = saved(tmp_path, VALUES)
    path.write_bytes(path.read_bytes().replace(b"n+1\0", b"ni1\0", 1))
    refused(path, "it is a header whose values stand in another file")
    path.write_bytes(gzip.compress(b"SECRET " * 100))
    refused(path, "its content is none of the known image formats")
    path.write_bytes(b"\x1f\x8bSECRET" * 100)
    refused(path, "its content is none of the known image formats")


def test_compressed_files_that_are_damaged_or_grow_without_end_are_refused(tmp_path: Path):
    whole = gzip.compress(saved(tmp_path, VALUES).read_bytes())
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(whole[:-30])
    refused(path, "it cannot be read as NIfTI. The file is damaged")
    flipped = bytearray(whole)
    flipped[-6] ^= 1
    path.write_bytes(flipped)
    refused(path, "it cannot be read as NIfTI. The file is damaged")
    path.write_bytes(gzip.compress(saved(tmp_path, VALUES).read_bytes() + bytes(10**7)))
    refused(path, "it holds more values than its header declares")
    path.write_bytes(gzip.compress(saved(tmp_path, np.zeros((200, 200, 200), "<i2")).read_bytes()))
    refused(path, "declares 200 x 200 x 200 values, 32000000 bytes, more than the limit", limit_bytes=2**24)


def test_an_index_is_no_window_of_a_nifti_file(tmp_path: Path):
    with pytest.raises(InputError, match="a NIfTI file names no windows"):
        read_image(saved(tmp_path, VALUES), window=0)
