"""Image files become trustworthy pixels, or an error that names file, reason and remedy."""

import base64
import csv
import hashlib
import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from chiasm.datasets import dicom
from chiasm.datasets.errors import InputError, UnreadableImageError
from chiasm.datasets.pixels import LIMIT_BYTES, ImageFile, read_image, read_stored_values, resize, unreadable
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_presentation_lut,
    apply_voi_lut,
    convert_color_space,
    get_decoder,
)
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

REAL = Path(__file__).parents[1].parent / "shared/data/dicom"
real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not beside the checkout")
SECRET = "SECRET^PATIENT"
DEFLATED_FRAMES, UNCOMPRESSED_FRAMES = "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.1.98"
# float32 holds 24 bits; the reference chain of pydicom is float64.
CLOSE = 2e-7


def index() -> list[dict[str, str]]:
    if not REAL.is_dir():
        return []
    with (REAL / "index.csv").open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def decodable(*photometric: str) -> list[str]:
    """The real files that permissive decoders read, optionally of some kinds only."""
    rows = [row for row in index() if row["shape"] and row["file"] != "JPGExtended.dcm"]
    return [row["file"] for row in rows if not photometric or row["photometric"] in photometric]


def described(values: np.ndarray, **elements: object) -> Dataset:
    """A dataset of these stored values; `elements` replace or add to what describes them (None removes)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.PatientName = SECRET
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    if values.dtype.kind == "f":
        dataset.BitsAllocated = 32
        dataset.FloatPixelData = values.astype("<f4").tobytes()
    else:
        bits = 8 * values.itemsize
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(values.dtype.kind == "i")
        dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    if "BitsStored" in elements:
        elements.setdefault("HighBit", elements["BitsStored"] - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
    return dataset


def saved(dataset: Dataset, folder: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    path = folder / "image.dcm"
    dataset.file_meta.TransferSyntaxUID = syntax
    implicit = syntax == ImplicitVRLittleEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(
            path, enforce_file_format=True, implicit_vr=implicit, little_endian=syntax != ExplicitVRBigEndian
        )
    return path


def written(folder: Path, values: np.ndarray, **elements: object) -> Path:
    return saved(described(values, **elements), folder)


def table(first: int, bits: int, entries: list[int]) -> Dataset:
    """One item of a LUT sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    return item


def windowed(dataset: Dataset, values: np.ndarray, choice: int = 0) -> np.ndarray:
    """pydicom's own chain, brought to [0, 1] by the output range of PS3.3 C.11.2.1."""
    measured = apply_modality_lut(values, dataset)
    shown = apply_voi_lut(measured, dataset, choice)
    if dataset.get("VOILUTSequence"):
        return shown / (2.0 ** dataset.VOILUTSequence[choice].LUTDescriptor[2] - 1)
    ends = [0, 2**dataset.BitsStored - 1]
    if dataset.PixelRepresentation:
        ends = [-(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1]
    low, high = apply_modality_lut(np.array(ends), dataset).astype(float)
    if dataset.get("ModalityLUTSequence"):
        low, high = 0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    return (shown - low) / (high - low)


def raw_deflate(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return machine.compress(data) + machine.flush()


def ramp(dtype: str, shape: tuple[int, int] = (16, 20)) -> np.ndarray:
    """Values over the whole range of a type, the extremes among them."""
    limits = np.iinfo(dtype)
    return np.linspace(limits.min, limits.max, shape[0] * shape[1]).astype(dtype).reshape(shape)


def png(folder: Path, image: Image.Image, **settings: object) -> Path:
    path = folder / "image.png"
    image.save(path, "PNG", **settings)
    return path


# Stored values


@real_files
@pytest.mark.parametrize("name", decodable())
def test_stored_values_are_those_of_the_index(name: str):
    row = next(row for row in index() if row["file"] == name)
    frames = int(row["frames"] or 1)
    stored = [read_stored_values(REAL / name, frame=i if frames > 1 else None) for i in range(frames)]
    values = np.stack(stored) if frames > 1 else stored[0]
    assert "x".join(map(str, values.shape)) == row["shape"]
    assert values.dtype == np.dtype(row["dtype"])
    assert (values.min(), values.max()) == (float(row["min"]), float(row["max"]))
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == row["pixel_sha256_16"]


@real_files
@pytest.mark.parametrize("name", decodable())
def test_every_real_file_that_some_decoder_reads_becomes_an_image(name: str):
    row = next(row for row in index() if row["file"] == name)
    image = read_image(REAL / name, frame=0 if int(row["frames"] or 1) > 1 else None)
    channels = 1 if row["photometric"].startswith("MONOCHROME") else 3
    assert image.pixels.shape == (channels, int(row["rows"]), int(row["cols"]))
    assert image.pixels.dtype == np.float32
    assert image.pixels.min() >= 0
    assert image.pixels.max() <= 1
    assert image.modality == (row["modality"] or None)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i2", "<u4", "<i4"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_native_values_survive_every_width_and_sign(tmp_path: Path, dtype: str, syntax: str):
    values = ramp(dtype)
    assert np.array_equal(read_stored_values(saved(described(values), tmp_path, syntax)), values)


@pytest.mark.parametrize("dtype", [">u2", ">i2", ">u4"])
def test_big_endian_values_show_like_little_endian_ones(tmp_path: Path, dtype: str):
    values = ramp(dtype)
    path = saved(described(values, WindowCenter=100, WindowWidth=20000), tmp_path, ExplicitVRBigEndian)
    assert np.array_equal(read_stored_values(path), values)
    shown = read_image(path).pixels
    little = values.astype(values.dtype.newbyteorder("<"))
    path = written(tmp_path, little, WindowCenter=100, WindowWidth=20000)
    assert np.array_equal(shown, read_image(path).pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i2"])
def test_lossless_compression_keeps_stored_values(tmp_path: Path, syntax: str, dtype: str):
    values = ramp(dtype, (64, 48))
    dataset = described(values)
    dataset.compress(syntax)
    path = tmp_path / "image.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(read_stored_values(path), values)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", range(2, 33))
def test_every_number_of_bits_is_read_and_what_lies_above_them_is_not(
    tmp_path: Path, bits: int, syntax: str, signed: bool
):
    allocated = next(width for width in (8, 16, 32) if width >= bits)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.linspace(low, high, 60).round().astype(np.int64).reshape(6, 10)
    litter = np.random.default_rng(bits).integers(0, 2 ** (allocated - bits), values.shape)
    order = "<" if syntax == ExplicitVRLittleEndian else ">"
    raw = ((values % 2**bits) | (litter << bits)).astype(f"{order}u{allocated // 8}")
    dataset = described(raw, BitsStored=bits, PixelRepresentation=int(signed), WindowCenter=0, WindowWidth=2**bits)
    path = saved(dataset, tmp_path, syntax)
    assert np.array_equal(read_stored_values(path), values)
    # PS3.3 C.11.2.1.2.1 by hand.
    expected = np.clip((values + 0.5) / (2.0**bits - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(path).pixels[0], expected, atol=CLOSE)


def framed(dataset: Dataset, frames: list[bytes], folder: Path, syntax: str) -> Path:
    """A file of these compressed frames."""
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    if syntax not in (DEFLATED_FRAMES, UNCOMPRESSED_FRAMES):
        return saved(dataset, folder, syntax)
    # pydicom 3.0 does not write these.
    path = saved(dataset, folder, JPEGBaseline8Bit)
    path.write_bytes(path.read_bytes().replace(JPEGBaseline8Bit.encode(), syntax.encode().ljust(22, b"\0"), 1))
    return path


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i2", "<u4"])
@pytest.mark.parametrize("deflated", [False, True])
def test_native_frames_in_fragments_are_read_deflated_or_not(tmp_path: Path, dtype: str, deflated: bool):
    frames = np.stack([ramp(dtype, (5, 3)), ramp(dtype, (5, 3))[::-1], ramp(dtype, (5, 3))[:, ::-1]])
    dataset = described(frames[0], NumberOfFrames=3)
    packed = [raw_deflate(frame.tobytes()) if deflated else frame.tobytes() for frame in frames]
    path = framed(dataset, packed, tmp_path, DEFLATED_FRAMES if deflated else UNCOMPRESSED_FRAMES)
    for i, frame in enumerate(frames):
        assert np.array_equal(read_stored_values(path, frame=i), frame)


def test_deflated_frames_of_single_bits_and_colours_are_read(tmp_path: Path):
    bits = np.random.default_rng(1).integers(0, 2, (3, 5), dtype="u1")
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    dataset = described(bits, BitsAllocated=1, BitsStored=1)
    assert np.array_equal(read_stored_values(framed(dataset, [raw_deflate(packed)], tmp_path, DEFLATED_FRAMES)), bits)
    colours = np.random.default_rng(2).integers(0, 256, (4, 6, 3), dtype="u1")
    for planar, data in ((0, colours), (1, colours.transpose(2, 0, 1))):
        dataset = described(colours, PlanarConfiguration=planar)
        path = framed(dataset, [raw_deflate(data.tobytes())], tmp_path, DEFLATED_FRAMES)
        assert np.array_equal(read_stored_values(path), colours)


def test_deflated_frames_of_another_size_are_refused(tmp_path: Path):
    values = ramp("<u2")
    for data, reason in (
        (raw_deflate(values.tobytes() + bytes(10**6)), "it inflates to more than 641 bytes. Its header is wrong"),
        (raw_deflate(values.tobytes()[:-2]), "have 638 bytes, where its header makes it 640"),
        (raw_deflate(values.tobytes())[:-9], "its deflated data end too early"),
    ):
        refused(framed(described(values), [data], tmp_path, DEFLATED_FRAMES), reason)


ROW, COLUMN = np.mgrid[0:12, 0:16]
GREY = ((ROW * ROW * 37 + COLUMN**3 * 5 + ROW * COLUMN * 11) % 4096).astype("<u2")
WHOLE = ((ROW * 4099 + COLUMN * 257 + ROW * COLUMN) % 65_536).astype("<u2")
COLOURS = np.stack([ROW * 20 % 256, COLUMN * 15 % 256, ROW * COLUMN % 256], -1).astype("u1")
CODESTREAMS = json.loads((Path(__file__).parent / "codestreams.json").read_text(encoding="utf-8"))


def codestream(name: str) -> bytes:
    return base64.b64decode(CODESTREAMS[name])


@pytest.mark.parametrize(
    ("name", "values", "syntaxes"),
    [
        ("htj2k 12 bits", GREY, (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)),
        ("htj2k signed", (GREY.astype("<i4") - 2048).astype("<i2"), (HTJ2KLossless, HTJ2K)),
        ("htj2k colour", COLOURS, (HTJ2KLossless, HTJ2K)),
        ("lossless jpeg 12 bits", GREY, (JPEGLossless, JPEGLosslessSV1)),
        ("lossless jpeg 16 bits", WHOLE, (JPEGLossless,)),
    ],
)
def test_frames_of_other_encoders_are_read_as_they_were(
    tmp_path: Path, name: str, values: np.ndarray, syntaxes: tuple[str, ...]
):
    elements = {} if values.ndim == 3 or "16" in name else {"BitsStored": 12}
    if values.ndim == 3:
        elements = {"PhotometricInterpretation": "YBR_RCT"}
    for syntax in syntaxes:
        path = framed(described(values, **elements), [codestream(name)], tmp_path, syntax)
        assert np.array_equal(read_stored_values(path), values)


def test_12_bit_jpeg_extended_names_what_is_missing_and_why(tmp_path: Path):
    if "pylibjpeg" in get_decoder(JPEGExtended12Bit).available_plugins:
        pytest.skip("pylibjpeg-libjpeg is installed and decodes 12-bit JPEG")
    dataset = described(GREY, BitsStored=12)
    path = framed(dataset, [codestream("jpeg extended 12 bits")], tmp_path, JPEGExtended12Bit)
    refused(
        path, "no decoder under a permissive licence: convert it with dcmdjpeg .DCMTK., or install pylibjpeg-libjpeg"
    )


def test_dicom_without_preamble_is_read_by_its_first_element(tmp_path: Path):
    values = ramp("<u2")
    whole = written(tmp_path, values).read_bytes()
    bare = tmp_path / "bare"
    bare.write_bytes(whole[132:])
    assert np.array_equal(read_stored_values(bare), values)
    for implicit, little in ((True, True), (False, True), (False, False)):
        stream = io.BytesIO()
        dataset = described(values.astype("<u2" if little else ">u2"))
        del dataset.file_meta
        dataset.save_as(stream, implicit_vr=implicit, little_endian=little)
        bare.write_bytes(stream.getvalue())
        assert np.array_equal(read_stored_values(bare), values), (implicit, little)


def test_the_kind_of_a_file_is_told_by_its_content_and_not_its_name(tmp_path: Path):
    path = written(tmp_path, ramp("u1"))
    disguised = path.rename(tmp_path / "image.png")
    assert read_image(disguised).modality is None
    Image.fromarray(ramp("u1")).save(tmp_path / "image.dcm", "PNG")
    assert read_image(tmp_path / "image.dcm").window == "all values"


def test_bits_beyond_bits_stored_are_left_out(tmp_path: Path):
    values = ramp("<u2") >> 4
    overlaid = values | 0x8000
    path = written(tmp_path, overlaid, BitsStored=12)
    assert np.array_equal(read_stored_values(path), values)


def test_bit_packed_frames_are_cut_at_bits(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 2, (5, 3, 5), dtype="u1")
    packed = np.packbits(frames.ravel(), bitorder="little").tobytes()
    elements = {"BitsAllocated": 1, "BitsStored": 1, "NumberOfFrames": 5, "PixelData": packed}
    path = written(tmp_path, frames[0], **elements)
    for i, frame in enumerate(frames):
        assert np.array_equal(read_image(path, frame=i).pixels[0], frame)


# Grey scale


@real_files
@pytest.mark.parametrize("name", decodable("MONOCHROME1", "MONOCHROME2"))
def test_windows_of_real_files_equal_pydicoms_chain(name: str):
    dataset = pydicom.dcmread(REAL / name)
    if not (dataset.get("WindowWidth") or dataset.get("VOILUTSequence")):
        pytest.skip("this file names no window")
    expected = windowed(dataset, read_stored_values(REAL / name))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    padding = dataset.get("PixelPaddingValue")
    expected = np.where(read_stored_values(REAL / name) == padding, 0, expected)
    np.testing.assert_allclose(read_image(REAL / name).pixels[0], expected, atol=CLOSE)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (0.37, 12.5), (-2, 100)])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i2", "<i4"])
def test_windows_equal_pydicoms_chain(tmp_path: Path, function: str, slope: float, intercept: float, dtype: str):
    values = ramp(dtype, (30, 40))
    middle = (int(values.min()) + int(values.max())) / 2 * slope + intercept
    spread = max(2, round((float(values.max()) - float(values.min())) * abs(slope) / 3))
    rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    window = {"WindowCenter": round(middle, 1), "WindowWidth": spread, "VOILUTFunction": function}
    dataset = described(values, **rescale, **window)
    expected = windowed(dataset, values)
    assert 0 < (expected < 0.5).mean() < 1
    np.testing.assert_allclose(read_image(saved(dataset, tmp_path)).pixels[0], expected, atol=CLOSE)


def test_a_linear_window_of_width_one_is_a_threshold(tmp_path: Path):
    path = written(tmp_path, np.array([[9, 10, 11]], "u1"), WindowCenter=10.5, WindowWidth=1)
    assert read_image(path).pixels.tolist() == [[[0, 0, 1]]]


@pytest.mark.parametrize("first", [-5, 0, 40])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_tables_equal_pydicoms(tmp_path: Path, first: int, bits: int):
    values = ramp("<i2" if first < 0 else "<u2", (30, 40))
    values[0, :30] = np.arange(30) + max(first, 0)
    entries = np.linspace(0, 2**bits - 1, 200).round().astype(int)[::-1].tolist()
    dataset = described(values, VOILUTSequence=Sequence([table(first, bits, entries)]))
    # pydicom keeps indices in the type of the entries, which wraps those beyond 255 in 8-bit tables.
    known = np.clip(values, first, first + 199)
    expected = windowed(dataset, known)
    np.testing.assert_allclose(read_image(saved(dataset, tmp_path)).pixels[0], expected, atol=CLOSE)


def test_an_8_bit_voi_table_is_not_wrapped_by_large_values(tmp_path: Path):
    values = np.array([[0, 2, 3, 300, 65535]], "<u2")
    packed = table(0, 8, [])
    packed.LUTDescriptor, packed.LUTData = [4, 0, 8], bytes([0, 51, 102, 255])
    shown = read_image(written(tmp_path, values, VOILUTSequence=Sequence([packed]))).pixels
    np.testing.assert_allclose(shown[0, 0], [0, 0.4, 1, 1, 1], atol=CLOSE)


def test_modality_tables_equal_pydicoms(tmp_path: Path):
    values = np.arange(300, dtype="<u2").reshape(15, 20)
    entries = (np.arange(200) ** 2 // 10).tolist()
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    dataset = described(values, ModalityLUTSequence=Sequence([table(50, 16, entries)]), **window)
    expected = windowed(dataset, np.clip(values, 50, 249))
    np.testing.assert_allclose(read_image(saved(dataset, tmp_path)).pixels[0], expected, atol=CLOSE)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i2"])
@pytest.mark.parametrize("named", [True, False])
def test_one_table_gives_the_same_bits_as_the_chain_of_every_pixel(tmp_path: Path, dtype: str, named: bool):
    rng = np.random.default_rng(5)
    limits = np.iinfo(dtype)
    half = rng.integers(limits.min, limits.max, (200, 200), dtype=dtype, endpoint=True)
    half = half if half.itemsize == 2 else half[:10, :20]
    whole = np.vstack([half, half])
    assert half.size < 2 ** (8 * half.itemsize) <= whole.size
    elements = {"RescaleSlope": 0.7, "RescaleIntercept": -3, "PixelPaddingValue": int(half[0, 0])}
    elements |= {"WindowCenter": 10, "WindowWidth": limits.max, "VOILUTFunction": "SIGMOID"} if named else {}
    by_pixel = read_image(written(tmp_path, half, **elements)).pixels
    by_table = read_image(written(tmp_path, whole, **elements)).pixels
    assert np.array_equal(by_table, np.concatenate([by_pixel, by_pixel], axis=1))


def test_of_several_windows_the_first_is_taken_unless_one_is_chosen(tmp_path: Path):
    values = ramp("<u2")
    dataset = described(values, WindowCenter=[1000, 30000], WindowWidth=[2000, 50000])
    path = saved(dataset, tmp_path)
    for choice in (0, 1):
        expected = apply_windowing(values, dataset, choice) / 65535
        np.testing.assert_allclose(read_image(path, window=choice).pixels[0], expected, atol=CLOSE)
    assert np.array_equal(read_image(path).pixels, read_image(path, window=0).pixels)
    assert read_image(path, window=1).window == "LINEAR 30000/50000 (2 of 2)"


def test_tables_come_before_windows(tmp_path: Path):
    sequence = Sequence([table(0, 8, [0, 255])])
    path = written(tmp_path, ramp("u1"), VOILUTSequence=sequence, WindowCenter=100, WindowWidth=50)
    assert read_image(path).window == "VOI LUT (1 of 2)"
    assert read_image(path, window=1).window == "LINEAR 100/50 (2 of 2)"


def test_a_given_center_and_width_span_exactly_zero_to_one(tmp_path: Path):
    values = np.array([[0, 100, 150, 200, 255]], "u1")
    path = written(tmp_path, values, WindowCenter=1, WindowWidth=2, RescaleSlope=2, RescaleIntercept=0)
    image = read_image(path, window=(300, 200))
    np.testing.assert_allclose(image.pixels[0, 0], [0, 0, 0.5, 1, 1], atol=CLOSE)
    assert image.window == "LINEAR_EXACT 300/200"


def test_without_a_window_percentiles_of_the_modality_values_span_zero_to_one(tmp_path: Path):
    values = np.random.default_rng(1).normal(1000, 100, (300, 300)).astype("<i2")
    padded = values.copy()
    padded[:40] = -2000
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1000, "PixelPaddingValue": -2000}
    image = read_image(written(tmp_path, padded, **elements))
    measured = 2.0 * padded[40:] - 1000
    low, high = np.percentile(measured, (0.5, 99.5), method="inverted_cdf")
    np.testing.assert_allclose(image.pixels[0, 40:], np.clip((measured - low) / (high - low), 0, 1), atol=CLOSE)
    assert not image.pixels[0, :40].any()
    assert image.window == f"percentiles 0.5 to 99.5, {low:g} to {high:g}"


def test_where_percentiles_agree_all_values_span_the_range(tmp_path: Path):
    values = np.zeros((100, 100), "u1")
    values[0, 0], values[0, 1] = 10, 5
    image = read_image(written(tmp_path, values))
    assert image.pixels[0, 0, :3].tolist() == [1, 0.5, 0]
    assert image.window == "all values, 0 to 10"
    assert not read_image(written(tmp_path, np.full((3, 3), 7, "u1"))).pixels.any()


@pytest.mark.parametrize("limit", [None, 20, 3])
def test_padding_is_black_even_where_small_values_are_bright(tmp_path: Path, limit: int | None):
    values = np.arange(256, dtype="u1").reshape(16, 16)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 128, "WindowWidth": 256}
    elements |= {"PixelPaddingValue": 10} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
    low, high = sorted((10, 10 if limit is None else limit))
    shown = read_image(written(tmp_path, values, **elements)).pixels[0]
    inside = (values >= low) & (values <= high)
    assert not shown[inside].any()
    assert (shown[~inside & (values < 200)] > 0.2).all()


@pytest.mark.parametrize("window", [None, (0, 10)])
@pytest.mark.parametrize(("dtype", "shape"), [("u1", (16, 20)), ("<u2", (4, 5)), ("<u4", (4, 5))])
def test_an_image_of_padding_alone_is_refused(tmp_path: Path, dtype: str, shape: tuple[int, int], window: object):
    dataset = described(np.full(shape, 7, dtype))
    dataset.add_new("PixelPaddingValue", "US", 7)
    refused(saved(dataset, tmp_path), "all its pixels are padding", window=window)


def test_percentiles_of_many_values_are_those_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(3).normal(10_000, 100, (64, 64)).astype("<i4")
    monkeypatch.setattr("chiasm.datasets.greyscale.LARGEST_SAMPLE", 1000)
    # 4,096 values, every fifth of them.
    low, high = np.percentile(values.ravel()[::5], (0.5, 99.5), method="inverted_cdf")
    image = read_image(written(tmp_path, values))
    np.testing.assert_allclose(image.pixels[0], np.clip((values - low) / (high - low), 0, 1), atol=CLOSE)
    # Where the part is all padding, all values decide.
    values.ravel()[::5] = -5
    padded = described(values)
    padded.add_new("PixelPaddingValue", "SL", -5)
    kept = values[values != -5]
    low, high = np.percentile(kept, (0.5, 99.5), method="inverted_cdf")
    shown = read_image(saved(padded, tmp_path)).pixels[0]
    np.testing.assert_allclose(shown[values != -5], np.clip((kept - low) / (high - low), 0, 1), atol=CLOSE)


def test_signed_padding_written_as_unsigned_is_the_same_bits(tmp_path: Path):
    values = np.array([[-2000, 0, 100]], "<i2")
    dataset = described(values, WindowCenter=-1000, WindowWidth=4000)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert read_image(saved(dataset, tmp_path)).pixels[0, 0, 0] == 0
    assert read_image(saved(dataset, tmp_path)).pixels[0, 0, 1] > 0


def test_monochrome1_is_inverted_once(tmp_path: Path):
    values = ramp("<u2")
    window = {"WindowCenter": 30000, "WindowWidth": 40000}
    upright = read_image(written(tmp_path, values, **window)).pixels
    for elements in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
        {"PresentationLUTShape": "INVERSE"},
    ):
        np.testing.assert_allclose(
            read_image(written(tmp_path, values, **window, **elements)).pixels, 1 - upright, atol=CLOSE
        )
    same = read_image(written(tmp_path, values, **window, PresentationLUTShape="IDENTITY")).pixels
    assert np.array_equal(same, upright)


def test_inversion_equals_pydicoms_presentation_lut(tmp_path: Path):
    values = ramp("u1")
    dataset = described(values, WindowCenter=128, WindowWidth=256, PresentationLUTShape="INVERSE")
    expected = apply_presentation_lut(apply_voi_lut(values, dataset), dataset) / 255
    np.testing.assert_allclose(read_image(saved(dataset, tmp_path)).pixels[0], expected, atol=CLOSE)


def test_overlays_leave_the_pixels_alone(tmp_path: Path):
    values = ramp("u1")
    dataset = described(values)
    plain = read_image(saved(dataset, tmp_path)).pixels
    dataset.add_new(0x60000010, "US", values.shape[0])
    dataset.add_new(0x60000011, "US", values.shape[1])
    dataset.add_new(0x60003000, "OW", b"\xff" * (values.size // 8))
    assert np.array_equal(read_image(saved(dataset, tmp_path)).pixels, plain)


def test_each_frame_of_an_enhanced_image_has_its_own_rescale_and_window(tmp_path: Path):
    frames = np.stack([ramp("<u2"), ramp("<u2")[::-1]])

    def group(slope: float, center: float) -> Dataset:
        rescale, window, item = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 5
        window.WindowCenter, window.WindowWidth = center, 30000
        item.PixelValueTransformationSequence = Sequence([rescale])
        item.FrameVOILUTSequence = Sequence([window])
        return item

    groups = [group(1, 20000), group(0.5, 10000)]
    elements = {"NumberOfFrames": 2, "PixelData": frames.tobytes()}
    path = written(tmp_path, frames[0], PerFrameFunctionalGroupsSequence=Sequence(groups), **elements)
    for i, (slope, center) in enumerate(((1, 20000), (0.5, 10000))):
        # PS3.3 C.11.2.1.2.1 by hand.
        expected = np.clip((frames[i].astype(float) * slope + 5 - (center - 0.5)) / 29999 + 0.5, 0, 1)
        np.testing.assert_allclose(read_image(path, frame=i).pixels[0], expected, atol=CLOSE)
    shared = written(tmp_path, frames[0], SharedFunctionalGroupsSequence=Sequence(groups[:1]), **elements)
    assert read_image(shared, frame=1).window == "LINEAR 20000/30000 (1 of 1)"


def test_floating_point_pixels_are_scaled_between_percentiles(tmp_path: Path):
    values = np.random.default_rng(2).random((30, 30), dtype=np.float32)
    low, high = np.percentile(values, (0.5, 99.5), method="inverted_cdf")
    # A LINEAR window of 0.5 and 1, as parametric maps carry it, would leave black and white only.
    path = written(tmp_path, values, WindowCenter=0.5, WindowWidth=1)
    np.testing.assert_allclose(read_image(path).pixels[0], np.clip((values - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_allclose(read_image(path, window=(0.5, 1)).pixels[0], values, atol=CLOSE)
    assert set(np.unique(read_image(path, window=0).pixels)) <= {0, 1}


def test_declared_nan_is_padding(tmp_path: Path):
    values = np.array([[np.nan, 0, 1, 2]], np.float32)
    dataset = described(values)
    dataset.add_new("FloatPixelPaddingValue", "FL", float("nan"))
    assert read_image(saved(dataset, tmp_path)).pixels[0, 0].tolist() == [0, 0, 0.5, 1]


def test_double_precision_pixels_are_read(tmp_path: Path):
    dataset = described(np.zeros((1, 3), np.float32))
    del dataset.FloatPixelData
    dataset.BitsAllocated = 64
    dataset.DoubleFloatPixelData = np.array([[1.0, 1.5, 2.0]]).tobytes()
    assert read_image(saved(dataset, tmp_path)).pixels[0, 0].tolist() == [0, 0.5, 1]


# Colour


@real_files
@pytest.mark.parametrize("name", decodable("RGB", "YBR_FULL", "YBR_FULL_422"))
def test_colours_of_real_files_are_their_rgb_over_255(name: str):
    frames = int(pydicom.dcmread(REAL / name, stop_before_pixels=True).get("NumberOfFrames", 1))
    frame = frames - 1 if frames > 1 else None
    expected = read_stored_values(REAL / name, frame=frame).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(read_image(REAL / name, frame=frame).pixels, expected, atol=CLOSE)


@real_files
@pytest.mark.parametrize("name", decodable("PALETTE COLOR"))
def test_palettes_of_real_files_equal_pydicoms(name: str):
    dataset = pydicom.dcmread(REAL / name)
    expected = apply_color_lut(dataset.pixel_array, dataset).transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(read_image(REAL / name).pixels, expected, atol=CLOSE)


def test_planar_configurations_show_the_same_colours(tmp_path: Path):
    values = np.random.default_rng(3).integers(0, 256, (6, 4, 3), dtype="u1")
    by_pixel = read_image(written(tmp_path, values)).pixels
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    by_plane = read_image(written(tmp_path, values, PlanarConfiguration=1, PixelData=planes.tobytes())).pixels
    np.testing.assert_allclose(by_pixel, planes / 255, atol=CLOSE)
    assert np.array_equal(by_pixel, by_plane)


def test_16_bit_colours_are_scaled_by_bits_stored(tmp_path: Path):
    values = np.array([[[0, 2048, 4095], [4095, 0, 1]]], "<u2")
    shown = read_image(written(tmp_path, values, BitsStored=12)).pixels
    np.testing.assert_allclose(shown, values.transpose(2, 0, 1) / 4095, atol=CLOSE)


def test_ybr_full_becomes_rgb_as_in_pydicom(tmp_path: Path):
    values = np.random.default_rng(4).integers(0, 256, (6, 4, 3), dtype="u1")
    shown = read_image(written(tmp_path, values, PhotometricInterpretation="YBR_FULL")).pixels
    expected = convert_color_space(values.copy(), "YBR_FULL", "RGB").transpose(2, 0, 1) / 255
    np.testing.assert_allclose(shown, expected, atol=CLOSE)


def palette(descriptor: list[int], data: list[bytes], prefix: str = "") -> dict[str, object]:
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in zip(("Red", "Green", "Blue"), data, strict=True):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = descriptor
        elements[f"{prefix}{colour}PaletteColorLookupTableData"] = entries
    return elements


def test_an_8_bit_palette_shows_indices_beyond_255(tmp_path: Path):
    values = np.array([[99, 100, 355, 399, 65535]], "<u2")
    shades = (np.arange(300) % 256).astype("u1")
    data = [shades.tobytes(), shades[::-1].tobytes(), bytes(300)]
    shown = read_image(written(tmp_path, values, **palette([300, 100, 8], data))).pixels
    np.testing.assert_allclose(shown[0, 0] * 255, [0, 0, 255, 43, 43], atol=1e-4)
    assert not shown[2].any()


def test_segmented_palettes_equal_pydicoms(tmp_path: Path):
    values = np.arange(256, dtype="u1").reshape(16, 16)
    segments = np.array([0, 2, 7, 900, 1, 199, 65535, 0, 3, 5, 4, 3, 1, 52, 100], "<u2").tobytes()
    # An odd count of steps, so that no entry lies half way between two whole numbers.
    dataset = described(values, **palette([256, 0, 16], [segments] * 3, "Segmented"))
    expected = apply_color_lut(values, dataset).transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(read_image(saved(dataset, tmp_path)).pixels, expected, atol=CLOSE)


@pytest.mark.parametrize("bits", [8, 16])
def test_an_indirect_segment_repeats_the_segments_at_its_offset(tmp_path: Path, bits: int):
    # Two entries of their own, then the one segment at the start once more: 10 20 10 20.
    if bits == 8:
        segments = bytes([0, 2, 10, 20, 2, 1, 0, 0, 0, 0])
    else:
        segments = np.array([0, 2, 10, 20, 2, 1, 0, 0], "<u2").tobytes()
    path = written(tmp_path, np.array([[0, 1, 2, 3]], "u1"), **palette([4, 0, bits], [segments] * 3, "Segmented"))
    np.testing.assert_allclose(read_image(path).pixels[0, 0] * (2**bits - 1), [10, 20, 10, 20], atol=1e-4)


# PNG and JPEG


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_png_of_8_bits_and_less_show_as_in_pillow(tmp_path: Path, mode: str):
    picture = Image.fromarray(np.random.default_rng(6).integers(0, 256, (9, 7, 3), dtype="u1")).convert(mode)
    grey = mode in ("1", "L")
    expected = np.atleast_3d(np.asarray(picture.convert("L" if grey else "RGB"))).transpose(2, 0, 1) / 255
    image = read_image(png(tmp_path, picture))
    np.testing.assert_allclose(image.pixels, expected, atol=CLOSE)
    assert image == ImageFile(image.pixels, "all values")


def test_grey_png_of_16_bits_keep_all_of_them(tmp_path: Path):
    values = ramp("u2")
    image = read_image(png(tmp_path, Image.fromarray(values)))
    np.testing.assert_allclose(image.pixels[0], values / 65535, atol=CLOSE)


def test_a_png_of_12_bits_in_16_is_shown_over_the_window_that_is_given(tmp_path: Path):
    values = np.arange(4096, dtype="u2").reshape(64, 64)
    path = png(tmp_path, Image.fromarray(values))
    assert read_image(path).pixels.max() == pytest.approx(4095 / 65535)
    image = read_image(path, window=(2047.5, 4095))
    np.testing.assert_allclose(image.pixels[0], values / 4095, atol=CLOSE)
    assert image.window == "LINEAR_EXACT 2047.5/4095"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_composited_on_black(tmp_path: Path, mode: str):
    planes = np.random.default_rng(7).integers(0, 256, (9, 7, len(mode)), dtype="u1")
    image = read_image(png(tmp_path, Image.fromarray(planes, mode)))
    expected = planes[..., :-1] / 255 * (planes[..., -1:] / 255)
    np.testing.assert_allclose(image.pixels, expected.transpose(2, 0, 1), atol=CLOSE)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_transparent_grey_value_is_black(tmp_path: Path, dtype: str):
    values = np.array([[1, 200, 255]], dtype)
    full = np.iinfo(dtype).max
    shown = read_image(png(tmp_path, Image.fromarray(values), transparency=200)).pixels
    np.testing.assert_allclose(shown[0, 0], [1 / full, 0, 255 / full], atol=CLOSE)


def test_a_transparent_palette_entry_is_black(tmp_path: Path):
    picture = Image.fromarray(np.array([[0, 1]], "u1"))
    picture = picture.convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0])
    shown = read_image(png(tmp_path, picture, transparency=1)).pixels
    assert shown.tolist() == [[[1, 0]], [[0, 0]], [[0, 0]]]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_show_as_in_pillow(tmp_path: Path, mode: str):
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(8).integers(0, 256, (16, 24, 3), dtype="u1")).convert(mode).save(path)
    expected = np.atleast_3d(np.asarray(Image.open(path).convert("L" if mode == "L" else "RGB")))
    np.testing.assert_allclose(read_image(path).pixels, expected.transpose(2, 0, 1) / 255, atol=CLOSE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(tmp_path: Path, kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image"
    Image.fromarray(ramp("u1", (8, 12))).save(path, kind, exif=exif)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture)) / 255
    np.testing.assert_allclose(read_image(path).pixels[0], expected, atol=CLOSE)


# TIFF


def tiff(folder: Path, values: np.ndarray, *, order: str = "<", white_is_zero: bool = False, **tags: int) -> Path:
    """An uncompressed grey TIFF, written after TIFF 6.0; `tags` are numbered t258 and so on."""
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    own = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: int(not white_is_zero), 273: 0, 277: 1}
    own |= {278: height, 279: values.nbytes, 339: form} | {int(name[1:]): tag for name, tag in tags.items()}
    own[273] = 8 + 2 + 12 * len(own) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(own.items()))
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(own)) + entries + bytes(4)
    path = folder / "image.tif"
    path.write_bytes(head + values.astype(values.dtype.newbyteorder(order)).tobytes())
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_of_whole_numbers_spans_the_range_of_its_bits(tmp_path: Path, dtype: str, order: str, white_is_zero: bool):
    if dtype == "u2" and order == ">" and white_is_zero:
        pytest.skip("Pillow does not tell these")
    values = ramp(dtype)
    image = read_image(tiff(tmp_path, values, order=order, white_is_zero=white_is_zero))
    expected = values / np.iinfo(dtype).max
    np.testing.assert_allclose(image.pixels[0], 1 - expected if white_is_zero else expected, atol=CLOSE)
    assert image.window == "all values"


@pytest.mark.parametrize(("dtype", "scale"), [("i2", 1), ("i4", 1000), ("u4", 4e7), ("f4", 0.001)])
def test_tiff_of_other_values_is_scaled_between_percentiles(tmp_path: Path, dtype: str, scale: float):
    values = (np.random.default_rng(12).normal(50, 10, (40, 50)) * scale).astype(dtype)
    low, high = np.percentile(values, (0.5, 99.5), method="inverted_cdf").astype(float)
    image = read_image(tiff(tmp_path, values))
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(image.pixels[0], expected, atol=CLOSE)
    assert image.window == f"percentiles 0.5 to 99.5, {low:g} to {high:g}"
    given = read_image(tiff(tmp_path, values), window=(50 * scale, 20 * scale)).pixels[0]
    np.testing.assert_allclose(given, np.clip(values.astype(float) / scale / 20 - 2, 0, 1), atol=1e-5)


def test_a_tiff_of_12_bits_spans_them(tmp_path: Path):
    path = tiff(tmp_path, np.array([[0x00, 0x0F, 0xFF]], "u1"), t258=12, t256=2)
    np.testing.assert_allclose(read_image(path).pixels[0, 0], [0, 1], atol=CLOSE)


def test_an_inverted_tiff_of_floats_is_turned_once(tmp_path: Path):
    values = np.float32([[0, 1, 2, 3]])
    shown = read_image(tiff(tmp_path, values, white_is_zero=True), window=(1.5, 3)).pixels
    np.testing.assert_allclose(shown[0, 0], [1, 2 / 3, 1 / 3, 0], atol=CLOSE)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_tiff_shows_as_png_whatever_compresses_it(tmp_path: Path, mode: str, compression: str | None):
    values = np.random.default_rng(6).integers(0, 256, (9, 7, 4), dtype="u1")
    picture = Image.fromarray(values[..., :3]).convert(mode)
    if mode == "RGBA":
        picture = Image.fromarray(values, "RGBA")
    picture.save(tmp_path / "image.tif", compression=compression)
    np.testing.assert_allclose(
        read_image(tmp_path / "image.tif").pixels, read_image(png(tmp_path, picture)).pixels, atol=CLOSE
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_applied_once(tmp_path: Path, orientation: int):
    path = tiff(tmp_path, ramp("u1", (8, 12)), t274=orientation)
    with Image.open(png(tmp_path, Image.fromarray(ramp("u1", (8, 12))))) as picture:
        picture.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(picture)) / 255
    np.testing.assert_allclose(read_image(path).pixels[0], expected, atol=CLOSE)


def test_a_page_of_a_tiff_is_chosen(tmp_path: Path):
    pages = [Image.fromarray(np.full((4, 5), tone, "u1")) for tone in (0, 51, 255)]
    path = tmp_path / "image.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    for frame, tone in enumerate((0, 0.2, 1)):
        np.testing.assert_allclose(read_image(path, frame=frame).pixels, tone, atol=CLOSE)
    refused(path, "it has 3 pages, where one image is expected. Choose one with frame=0 to frame=2")
    with pytest.raises(InputError, match="frame is 3; the file has frames 0 to 2"):
        read_image(path, frame=3)


def test_tiffs_that_cannot_be_trusted_are_refused(tmp_path: Path):
    refused(tiff(tmp_path, ramp("i1")), "its values of 8 bits are signed")
    refused(tiff(tmp_path, np.float32([[1, np.nan]])), "its pixels hold NaN or infinity. Replace them")
    refused(tiff(tmp_path, ramp("u2"), t256=60_000, t257=20_000), "more pixels than Pillow decodes")
    refused(tiff(tmp_path, ramp("u2"), t256=20_000, t257=6000), "declares 6000 x 20000 pixels", limit_bytes=2**20)
    tiles = {"t322": 65_536, "t323": 65_536, "t324": 8, "t325": 640}
    refused(tiff(tmp_path, ramp("u2"), **tiles), "its tiles are larger than the limit of memory")
    refused(tiff(tmp_path, ramp("u2"), t259=5), "cannot be decoded as TIFF. The file is damaged")
    Image.new("LAB", (3, 3)).save(tmp_path / "image.tif")
    refused(tmp_path / "image.tif", "its colours are LAB, which cannot be converted to RGB")
    path = tiff(tmp_path, ramp("u1"))
    with pytest.raises(InputError, match="window is for a PNG or TIFF of one channel of more than 8 bits"):
        read_image(path, window=(1, 2))
    for window in (0, "lung"):
        with pytest.raises(InputError, match="a TIFF names no windows"):
            read_image(path, window=window)


def test_a_dicom_file_may_start_like_a_tiff(tmp_path: Path):
    path = written(tmp_path, ramp("u1"), Modality="SM")
    path.write_bytes(b"II*\0" + path.read_bytes()[4:])
    assert read_image(path).modality == "SM"


# Windows by name


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [("lung", -1350, 150), ("mediastinum", -125, 225), ("brain", 0, 80), ("bone", -500, 1300)],
)
def test_a_window_by_name_spans_its_hounsfield_units(tmp_path: Path, name: str, black: float, white: float):
    values = np.array([[black + 1000, black + 1024, white + 1024, 4000]], "<i2")
    ct = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
    image = read_image(written(tmp_path, values, **ct), window=name)
    assert image.pixels[0, 0].tolist() == [0, 0, 1, 1]
    assert image.window.startswith(f"{name}, LINEAR_EXACT ")
    middle = np.full((1, 1), (black + white) / 2 + 1024, "<i2")
    units = ct | {"RescaleType": "HU"}
    np.testing.assert_allclose(read_image(written(tmp_path, middle, **units), window=name).pixels, 0.5, atol=CLOSE)


@pytest.mark.parametrize(
    "elements",
    [
        {"Modality": "MR", "RescaleSlope": 1, "RescaleIntercept": 0},
        {"Modality": "CT"},
        {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "Z_EFF"},
        {"RescaleSlope": 1, "RescaleIntercept": 0},
    ],
)
def test_a_window_by_name_needs_hounsfield_units(tmp_path: Path, elements: dict[str, object]):
    with pytest.raises(InputError, match="is in Hounsfield units, and this is no CT rescaled to them"):
        read_image(written(tmp_path, ramp("<i2"), **elements), window="lung")


# What the header says


def test_the_origin_is_read_without_naming_the_patient(tmp_path: Path):
    origin = {"Modality": "DX", "ViewPosition": "PA", "ImageLaterality": "R", "StudyInstanceUID": "1.2.3"}
    origin |= {"SeriesInstanceUID": "1.2.4", "AcquisitionDateTime": "20240229131415.25+0100"}
    image = read_image(written(tmp_path, ramp("u1"), **origin))
    assert (image.modality, image.view, image.laterality) == ("DX", "PA", "R")
    assert (image.study_uid, image.series_uid) == ("1.2.3", "1.2.4")
    assert image.acquired == datetime(2024, 2, 29, 13, 14, 15, 250000)
    assert "SECRET" not in repr(image)


@pytest.mark.parametrize(
    ("elements", "acquired"),
    [
        ({"AcquisitionDate": "20240102", "AcquisitionTime": "0304"}, datetime(2024, 1, 2, 3, 4)),
        ({"ContentDate": "20240102", "ContentTime": "030405"}, datetime(2024, 1, 2, 3, 4, 5)),
        ({"AcquisitionDate": "20240102"}, None),
        ({"AcquisitionDate": "20240132", "AcquisitionTime": "0304"}, None),
        ({"AcquisitionDateTime": "202401"}, None),
        ({"StudyDate": "20240102", "StudyTime": "0304"}, None),
    ],
)
def test_the_acquisition_is_dated_only_where_its_own_date_and_time_stand(
    tmp_path: Path, elements: dict[str, str], acquired: datetime | None
):
    assert read_image(written(tmp_path, ramp("u1"), **elements)).acquired == acquired


def test_free_text_where_a_code_belongs_counts_as_absent(tmp_path: Path):
    wrong = {"Modality": "Secret Patient", "ViewPosition": SECRET, "Laterality": "X", "StudyInstanceUID": "Secret"}
    image = read_image(written(tmp_path, ramp("u1"), **wrong))
    assert (image.modality, image.view, image.laterality, image.study_uid) == (None, None, None, None)


# Refusals


def refused(path: Path, reason: str, **settings: object) -> None:
    """The file is refused in one line that names it, for this reason, and with nothing of the header."""
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(path, **settings)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "SECRET" not in message.upper()
    assert caught.value.__cause__ is None
    if not settings:
        assert unreadable(path) == message


def test_a_readable_file_has_no_reason_to_be_refused(tmp_path: Path):
    assert unreadable(written(tmp_path, ramp("u1"))) is None


def test_what_is_no_file_is_refused(tmp_path: Path):
    refused(tmp_path / "absent.dcm", "there is no such file")
    refused(tmp_path, "it holds no DICOM image. Give the folder of one series")
    (tmp_path / "empty.dcm").touch()
    refused(tmp_path / "empty.dcm", "it is empty")
    (tmp_path / "note.dcm").write_text("SECRET PATIENT has a cough. " * 20)
    refused(tmp_path / "note.dcm", "none of the known image formats. Expected DICOM, NIfTI, PNG, JPEG or TIFF")
    Image.fromarray(ramp("u1")).save(tmp_path / "image.gif")
    refused(tmp_path / "image.gif", "none of the known image formats")


def test_a_file_that_may_not_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = written(tmp_path, ramp("u1"))

    def forbid(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", forbid)
    refused(path, "cannot be opened. Check the path and the permissions")


@real_files
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rtplan.dcm", "it has no pixel data"),
        ("chrJapMulti.dcm", "it has no pixel data"),
        ("MR_truncated.dcm", "8130 bytes, where its header makes it 8192"),
        ("JPGExtended.dcm", "no decoder under a permissive licence: convert it with dcmdjpeg"),
        ("no_meta.dcm", "none of the known image formats"),
        (
            "examples_ybr_color.dcm",
            "it has 30 frames, where one image is expected. Choose one with frame=0 to frame=29",
        ),
    ],
)
def test_real_files_without_one_decodable_image_are_refused(name: str, reason: str):
    if name == "JPGExtended.dcm" and "pylibjpeg" in get_decoder(JPEGExtended12Bit).available_plugins:
        pytest.skip("pylibjpeg-libjpeg is installed and decodes 12-bit JPEG")
    refused(REAL / name, reason)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, "declares 65535 x 65535 pixels .* more than the limit"),
        ({"NumberOfFrames": 2**30}, "more than the limit"),
        ({"Rows": 0}, "Rows is absent or not a whole number"),
        ({"Columns": None}, "Columns is absent or not a whole number"),
        ({"Rows": 15}, "320 bytes, where its header makes it 300"),
        ({"Rows": 17}, "320 bytes, where its header makes it 340"),
        ({"NumberOfFrames": -1}, "NumberOfFrames is absent or not a whole number"),
        ({"SamplesPerPixel": 3}, "Photometric Interpretation is not one of"),
        ({"PhotometricInterpretation": SECRET}, "Photometric Interpretation is not one of"),
        ({"BitsStored": 9}, "Bits Stored, Bits Allocated and High Bit contradict"),
        ({"HighBit": 4}, "Bits Stored, Bits Allocated and High Bit contradict"),
        ({"PixelRepresentation": 2}, "Pixel Representation is absent or impossible"),
        ({"PixelRepresentation": None}, "Pixel Representation is absent or impossible"),
        ({"FloatPixelData": b"1234"}, "it has both PixelData and FloatPixelData"),
        ({"PixelData": b""}, "its pixel data have 0 bytes"),
        ({"BitsAllocated": 24}, "its pixel data have 320 bytes, where its header makes it 960"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "Rescale Slope is 0"),
        ({"RescaleSlope": 2}, "slope and intercept are not both there"),
        ({"RescaleSlope": "1e400", "RescaleIntercept": 0}, "RescaleSlope is not finite"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": 0}, "make values infinite"),
        ({"RescaleSlope": [1, 2], "RescaleIntercept": 0}, "RescaleSlope is not one number"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "its Window Width is 0, and LINEAR takes one of 1 or more"),
        (
            {"WindowCenter": 10, "WindowWidth": -2, "VOILUTFunction": "SIGMOID"},
            "its Window Width is -2, and SIGMOID takes one above 0. Give window=.* to ImageEncoder for the images of",
        ),
        ({"WindowCenter": [10, 20], "WindowWidth": 5}, "its Window Center has 2 values and its Window Width 1"),
        (
            {"WindowCenter": 10, "WindowWidth": 5, "VOILUTFunction": "SECRET"},
            "its VOI LUT Function is none of LINEAR, LINEAR_EXACT, SIGMOID",
        ),
        ({"WindowCenter": 10, "WindowWidth": "1e400"}, "WindowWidth is not finite"),
        ({"PresentationLUTShape": "SECRET"}, "Presentation LUT Shape is neither IDENTITY nor INVERSE"),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 255}, "all its pixels are padding"),
        ({"PixelPaddingValue": [1, 2]}, "PixelPaddingValue is not one number"),
        ({"VOILUTSequence": Sequence([Dataset()])}, "its LUT is broken"),
        ({"VOILUTSequence": Sequence([table(0, 17, [1, 2])])}, "its LUT is broken"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "its Red palette is absent"),
        (palette([4, 0, 16], [b"\0\0"] * 3), "its Red palette is broken"),
        (palette([4, 0, 16], [struct.pack("<6H", 2, 1, 0, 0, 0, 0)] * 3, "Segmented"), "its Red palette is broken"),
    ],
)
def test_headers_that_cannot_be_true_are_refused(tmp_path: Path, elements: dict[str, object], reason: str):
    refused(written(tmp_path, ramp("u1"), **elements), reason)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PixelRepresentation": 1}, "Pixel Representation is absent or impossible"),
        ({"BitsStored": 3, "PhotometricInterpretation": "YBR_RCT"}, "colours cannot be converted to RGB"),
        ({"BitsAllocated": 16, "PhotometricInterpretation": "YBR_FULL"}, "YBR_FULL of more than 8 bits"),
    ],
)
def test_colours_that_cannot_be_true_are_refused(tmp_path: Path, elements: dict[str, object], reason: str):
    refused(written(tmp_path, np.zeros((4, 4, 3), "u1"), **elements), reason)


def test_colours_beyond_bits_stored_are_refused(tmp_path: Path):
    dataset = described(np.full((64, 64, 3), 255, "u1"))
    # JPEG 2000 carries its own precision, so that its decoders do not cut the excess off.
    dataset.compress(JPEG2000Lossless)
    dataset.BitsStored, dataset.HighBit = 6, 5
    path = tmp_path / "image.dcm"
    dataset.save_as(path, enforce_file_format=True)
    refused(path, "colours exceed its Bits Stored")


def test_undeclared_nan_and_floating_point_colours_are_refused(tmp_path: Path):
    refused(written(tmp_path, np.array([[np.nan, 1]], np.float32)), "NaN or infinity that is not declared")
    refused(written(tmp_path, np.array([[np.inf, 1]], np.float32)), "NaN or infinity that is not declared")
    path = written(tmp_path, np.ones((4, 4), np.float32), PhotometricInterpretation="PALETTE COLOR")
    refused(path, "floating-point colours, which do not exist")


def test_impossible_window_text_is_refused(tmp_path: Path):
    whole = written(tmp_path, ramp("u1"), WindowCenter="11111111", WindowWidth="11").read_bytes()
    path = tmp_path / "text.dcm"
    path.write_bytes(whole.replace(b"11111111", b"SECRET^P"))
    refused(path, "WindowCenter is (malformed|not numbers)")


def test_an_element_longer_than_any_true_one_is_refused(tmp_path: Path):
    dataset = described(ramp("u1"), WindowWidth=1)
    dataset.add_new("WindowCenter", "DS", ["1"] * 70_000)
    refused(saved(dataset, tmp_path, ImplicitVRLittleEndian), "WindowCenter is longer than 131072 bytes")


def test_a_header_that_cannot_be_parsed_is_refused(tmp_path: Path):
    path = tmp_path / "image.dcm"
    path.write_bytes(written(tmp_path, ramp("u1")).read_bytes()[:200])
    refused(path, "header cannot be parsed|no pixel data")
    path.write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    refused(path, "header cannot be parsed|no pixel data")


def before_pixels(path: Path, more: bytes) -> Path:
    """The same file with more before its pixel data."""
    whole = path.read_bytes()
    at = whole.rindex(b"\xe0\x7f\x10\x00")
    path.write_bytes(whole[:at] + more + whole[at:])
    return path


def test_a_header_of_more_parts_than_memory_holds_is_refused_before_they_are_objects(tmp_path: Path):
    item, opening = struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HH2sH", 0x0028, 0x3010, b"SQ", 0)
    closing = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path = written(tmp_path, ramp("u1"))
    before_pixels(path, opening + b"\xff" * 4 + item * 20_000 + closing)
    refused(path, "its DICOM header cannot be parsed", limit_bytes=2**20)
    path = written(tmp_path, ramp("u1"))
    before_pixels(path, opening + struct.pack("<I", 8 * 150_000) + item * 150_000)
    refused(path, "its header has 12.* bytes beside the pixels, more than 1048576", limit_bytes=2**26)


def test_deeply_nested_sequences_are_refused(tmp_path: Path):
    whole = written(tmp_path, ramp("u1")).read_bytes()
    item = struct.pack("<HH2sHI", 0x0028, 0x3010, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    path = tmp_path / "nested.dcm"
    path.write_bytes(whole[: whole.rindex(b"\xe0\x7f\x10\x00")] + item * 5000)
    refused(path, "header cannot be parsed.*RecursionError")


def test_an_unknown_transfer_syntax_is_refused(tmp_path: Path):
    dataset = described(ramp("u1"), PixelData=encapsulate([b"film"]))
    dataset["PixelData"].is_undefined_length = True
    refused(saved(dataset, tmp_path, "1.2.840.10008.1.2.4.100"), "no decoder is known for its transfer syntax")


def test_a_deflate_bomb_is_refused_before_it_inflates(tmp_path: Path):
    path = saved(described(np.zeros((2000, 2000), "u1")), tmp_path, DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 10_000
    refused(path, "inflates to more than 1000000 bytes", limit_bytes=1_000_000)
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path, "its deflated data end too early")


def test_large_files_are_refused_before_they_are_read(tmp_path: Path):
    path = written(tmp_path, ramp("u1"))
    refused(path, f"it has {path.stat().st_size} bytes, more than the limit of 100", limit_bytes=100)
    refused(path, "1280 bytes, more than the limit of 1200", limit_bytes=1200)


def long_jpeg_2000(tile: int = 1500, precincts: bytes = b"", markers: int = 0, parts: int = 0) -> bytes:
    """A JPEG 2000 of 1500 x 1500 pixels that ends with its header, and what that declares."""
    size = struct.pack(">HHHIIIIIIIIHBBB", 0xFF51, 41, 0, 1500, 1500, 0, 0, tile, tile, 0, 0, 1, 7, 1, 1)
    coding = (
        struct.pack(">HHBBHBBBBBB", 0xFF52, 12 + len(precincts), bool(precincts), 0, 1, 0, 5, 4, 4, 0, 1) + precincts
    )
    part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 14, 0, 1) + b"\xff\x93"
    return b"\xff\x4f" + size + coding + b"\xff\x64\0\2" * markers + part * parts + b"\xff\xd9"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (long_jpeg_2000(tile=9), "tiles or precincts of under 16 pixels, which fill the memory"),
        (long_jpeg_2000(precincts=b"\x88\x18\x88\x88\x88\x88"), "tiles or precincts of under 16 pixels"),
        (long_jpeg_2000(markers=2**19), "more markers than any true picture"),
        (long_jpeg_2000(parts=3), "its pixel data cannot be decoded"),
        (long_jpeg_2000(precincts=b"\x44" * 6, parts=1), "its pixel data cannot be decoded"),
    ],
)
def test_jpeg_2000_that_would_fill_memory_or_time_is_refused(tmp_path: Path, frame: bytes, reason: str):
    dataset = described(np.zeros((1500, 1500), "u1"))
    refused(framed(dataset, [frame], tmp_path, JPEG2000Lossless), reason)


def test_jpeg_2000_in_boxes_is_read_and_held_against_its_codestream(tmp_path: Path):
    values = ramp("u1", (64, 48))
    dataset = described(values)
    dataset.compress(JPEG2000Lossless)
    stream = dataset.PixelData[dataset.PixelData.index(b"\xff\x4f\xff\x51") :]
    stream = stream[: stream.rindex(b"\xff\xd9") + 2]
    signature = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    image = struct.pack(">I4sI4sIIHBBBB", 45, b"jp2h", 22, b"ihdr", 64, 48, 1, 7, 7, 0, 0)
    image += struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)
    whole = signature + image + struct.pack(">I4s", 0, b"jp2c") + stream
    assert np.array_equal(read_stored_values(framed(described(values), [whole], tmp_path, JPEG2000Lossless)), values)
    # A remark that looks like the start of a small codestream does not hide the large one.
    remark = long_jpeg_2000()[:50].replace(struct.pack(">II", 1500, 1500), struct.pack(">II", 48, 64), 1)
    hidden = signature + struct.pack(">I4s", 8 + len(remark), b"xml ") + remark
    hidden += struct.pack(">I4s", 0, b"jp2c") + long_jpeg_2000()
    dataset = described(values)
    refused(framed(dataset, [hidden], tmp_path, JPEG2000Lossless), "hold 1500 x 1500 pixels .* header says 64 x 48")
    refused(framed(dataset, [signature + bytes(8) + stream], tmp_path, JPEG2000Lossless), "hold no image")


def test_a_jpeg_of_scans_without_end_is_refused(tmp_path: Path):
    picture = io.BytesIO()
    Image.fromarray(ramp("u1", (40, 40))).save(picture, "JPEG", progressive=True)
    whole = picture.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    path = tmp_path / "image.jpg"
    path.write_bytes(whole[:-2] + last * 100 + b"\xff\xd9")
    refused(path, "JPEG of more than 64 scans, which would take hours")
    dataset = described(ramp("u1", (40, 40)))
    refused(framed(dataset, [path.read_bytes()], tmp_path, JPEGBaseline8Bit), "JPEG of more than 64 scans")


def run_lengths(dataset: Dataset, frame: bytes, folder: Path) -> Path:
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return saved(dataset, folder, RLELossless)


def test_rle_data_that_cannot_be_true_are_refused(tmp_path: Path):
    dataset = described(np.zeros((30, 40), "u1"))
    header = struct.pack("<16L", 1, 64, *[0] * 14)
    honest = header + b"\x81\x00" * 10
    assert not read_image(run_lengths(dataset, honest, tmp_path)).pixels.any()
    refused(run_lengths(dataset, header[:20], tmp_path), "RLE data are too short for their header")
    refused(run_lengths(dataset, header + b"\x81\x00", tmp_path), "RLE data are too short for the declared pixels")
    two = struct.pack("<16L", 2, 64, 84, *[0] * 13) + honest[64:] * 2
    refused(run_lengths(dataset, two, tmp_path), "RLE data have 2 segments")
    bomb = run_lengths(dataset, header + b"\x81\x00" * 1000, tmp_path)
    refused(bomb, "RLE data expand to more than 20000 bytes", limit_bytes=20_000)


@pytest.mark.parametrize("rest", [b"\x00\x07" * 5, b"\xff\x07\x81\x01\x80\x00\x05", b"\x03abcd\xfe\x01"])
def test_the_length_of_run_lengths_is_counted_as_pydicom_expands_them(rest: bytes):
    from chiasm.datasets.codestreams import _rle_length
    from pydicom.pixels.decoders.rle import _rle_decode_segment

    assert _rle_length(rest) == len(_rle_decode_segment(rest))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_compressed_data_of_another_size_are_refused(tmp_path: Path, syntax: str):
    dataset = described(ramp("u1", (64, 48)))
    dataset.compress(syntax)
    dataset.Rows = 32
    refused(saved(dataset, tmp_path, syntax), "hold 64 x 48 pixels of 1 .* its header says 32 x 48")


def test_a_jpeg_of_another_size_or_none_is_refused(tmp_path: Path):
    picture = io.BytesIO()
    Image.fromarray(ramp("u1", (8, 16))).save(picture, "JPEG")
    whole = picture.getvalue()
    huffman = whole.index(b"\xff\xc4")
    dataset = described(ramp("u1", (8, 16)))
    for rows, frame, reason in (
        (8, whole, None),
        (9, whole, "hold 8 x 16 pixels of 1 .* its header says 9 x 16"),
        (8, b"\xff\xd8\xff\xe0\x00\xff\xd9", "compressed data hold no image"),
        (8, b"\xff\xd8\xff\xff\xe0\x00\x02\x00\x00\x00\xff\xd9", "compressed data hold no image"),
        (8, b"\xff\xd8\xff\xc0\x00\x0b\xff\xd9", "compressed data hold no image"),
        (8, b"no picture\xff\xd9", "compressed data hold no image"),
        (8, whole[:250], "compressed data end too early"),
        (
            8,
            whole[: huffman + 5] + b"\xff" * 16 + whole[huffman + 21 :],
            "its pixel data cannot be decoded. The data are",
        ),
        (8, whole.replace(b"JFIF\0\x01", b"JFIF\0\x09"), "compressed data hold no image"),
        (8, whole[:2] + b"\xff\xee\0\x0eAdobe\0\0\0\0\0\0\x07" + whole[2:], "compressed data hold no image"),
        # Shorter than Adobe's own: decoders pass over it.
        (8, whole[:2] + b"\xff\xee\0\x0cAdobe\0\0\0\0\0" + whole[2:], None),
        (8, whole[:2] + b"\xff" * 2**20 + whole[2:], "compressed data hold no image"),
    ):
        dataset.Rows = rows
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].is_undefined_length = True
        path = saved(dataset, tmp_path, JPEGBaseline8Bit)
        if reason is None:
            assert read_image(path).pixels.shape == (1, 8, 16)
        else:
            refused(path, reason)


def test_png_and_jpeg_that_are_damaged_are_refused(tmp_path: Path):
    path = png(tmp_path, Image.fromarray(ramp("u1", (90, 70))))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refused(path, "cannot be decoded as PNG. The file is damaged")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    refused(path, "cannot be decoded as PNG. The file is damaged")
    Image.fromarray(ramp("u1", (90, 70))).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:400])
    refused(path, "cannot be decoded as JPEG. The file is damaged")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("side", "reason"), [(13_000, "declares 13000 x 13000 pixels"), (60_000, "more pixels than Pillow decodes")]
)
def test_a_png_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int, reason: str):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    refused(path, reason)


def test_an_animated_png_is_refused(tmp_path: Path):
    frames = [Image.fromarray(np.full((5, 5), i, "u1")) for i in (1, 2)]
    refused(png(tmp_path, frames[0], save_all=True, append_images=frames[1:]), "animated PNG")


@pytest.mark.parametrize("window", [-1, True, (1,), (1, 0), (float("nan"), 1), "liver", (1, "2")])
def test_a_window_that_no_file_could_have_is_an_input_error(tmp_path: Path, window: object):
    with pytest.raises(InputError, match="window: expected an index from 0"):
        read_image(tmp_path / "absent.dcm", window=window)


@pytest.mark.parametrize("frame", [-1, True, 0.5])
def test_a_frame_that_no_file_could_have_is_an_input_error(tmp_path: Path, frame: object):
    with pytest.raises(InputError, match="frame: expected an index from 0"):
        read_image(tmp_path / "absent.dcm", frame=frame)


def test_a_window_or_frame_that_this_file_lacks_is_an_input_error(tmp_path: Path):
    path = written(tmp_path, ramp("u1"), WindowCenter=1, WindowWidth=2)
    for settings, reason in (
        ({"window": 1}, "window is 1; the file has 1"),
        ({"frame": 1}, "frame is 1; the file has frames 0 to 0"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            read_image(path, **settings)
        assert not isinstance(caught.value, UnreadableImageError)
    with pytest.raises(InputError, match="window is for grey images"):
        read_image(written(tmp_path, np.zeros((2, 2, 3), "u1")), window=0)
    shades = png(tmp_path, Image.fromarray(ramp("u1")))
    for settings, reason in (
        ({"frame": 1}, "frame is for DICOM, NIfTI and TIFF"),
        ({"window": (1, 2)}, "window is for a PNG or TIFF of one channel of more than 8 bits"),
        ({"window": "lung"}, "a PNG names no windows"),
    ):
        with pytest.raises(InputError, match=reason):
            read_image(shades, **settings)


def test_stored_values_are_of_dicom_only(tmp_path: Path):
    with pytest.raises(UnreadableImageError, match="none of the known image formats"):
        read_stored_values(png(tmp_path, Image.fromarray(ramp("u1"))))


def test_reading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    whole = written(tmp_path, ramp("u1")).read_bytes()
    path = tmp_path / "mutant"
    for cut in range(132, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert unreadable(path) is not None
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


# Resizing


def test_shrinking_by_a_whole_factor_averages_areas():
    image = np.random.default_rng(10).random((3, 64, 64), dtype=np.float32)
    expected = image.reshape(3, 16, 4, 16, 4).mean((2, 4))
    np.testing.assert_allclose(resize(image, 16), expected, atol=1e-6)


@pytest.mark.parametrize(("shape", "rows", "columns"), [((40, 20), 32, 16), ((20, 40), 16, 32), ((2, 900), 1, 32)])
def test_resizing_keeps_the_aspect_ratio_and_centres_on_black(shape: tuple[int, int], rows: int, columns: int):
    square = resize(np.ones((1, *shape), np.float32), 32)
    assert square.shape == (1, 32, 32)
    assert square.dtype == np.float32
    top, left = (32 - rows) // 2, (32 - columns) // 2
    expected = np.zeros((32, 32))
    expected[top : top + rows, left : left + columns] = 1
    np.testing.assert_allclose(square[0], expected, atol=1e-6)


def test_fine_stripes_do_not_alias():
    stripes = np.tile(np.float32([0, 1]), (1, 100, 50))
    assert np.ptp(resize(stripes, 10)) < 0.01


def test_enlarging_stays_in_range_and_repeats_exactly():
    image = np.random.default_rng(11).random((1, 5, 7), dtype=np.float32)
    once = resize(image, 50)
    assert once.min() >= 0
    assert once.max() <= 1
    assert np.array_equal(once, resize(image, 50))
    assert np.array_equal(resize(image[:, :5, :5], 5), image[:, :5, :5])


@pytest.mark.parametrize(("shape", "size"), [((4, 4), 2), ((1, 0, 4), 2), ((1, 4, 4), 0)])
def test_what_is_no_image_cannot_be_resized(shape: tuple[int, ...], size: int):
    with pytest.raises(InputError, match=r"expected .channel, height, width. and 1 or more"):
        resize(np.zeros(shape, np.float32), size)


# Laws of the module


def test_importing_loads_no_decoder():
    code = "import sys, chiasm.datasets.pixels; print([m for m in ('torch', 'pydicom', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_limit_holds_the_largest_square_that_its_comment_names():
    assert LIMIT_BYTES == 4 * 16_384**2
    assert dicom.LONGEST_ELEMENT == 2**17
