"""Mutated image files give pixels in range or a refusal: no crash, hang, foreign exception or flood of memory.

By hand, `python -m tests.test_fuzz_images 10000` reads so many mutants in one process and prints what came of them;
a second number is that of the first mutant, so that several processes may share the work.
"""

import base64
import gzip
import io
import json
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from chiasm.datasets.errors import InputError
from chiasm.datasets.pixels import read_image
from nibabel import Nifti1Image, Nifti2Image
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from .mutant_watch import Watch, by_hand

REAL = Path(__file__).parents[1].parent / "shared/data/dicom"
CODESTREAMS = json.loads((Path(__file__).parent / "codestreams.json").read_text(encoding="utf-8"))
SECRET = "SECRET^PATIENT"
LIMIT_BYTES = 2**24
# The largest that reading may take beside what was there before: five times the limit, as `read_image` says, and
# what libraries keep for themselves.
MOST_BYTES = 5 * LIMIT_BYTES + 2**25
# Of one processor, which other programs do not change.
MOST_SECONDS = 10
# A slice among others that are whole, read as a folder.
SERIES = "series"
OF_FRAMES = ("tiff of pages", "SC_rgb_rle_2frame.dcm", "emri_small_RLE.dcm")
NATIVE, DEFLATED, IMPLICIT, BIG = (f"1.2.840.10008.1.2{rest}" for rest in (".1", ".1.99", "", ".2"))
GREY = np.random.default_rng(9).integers(0, 4096, (48, 64), dtype="<u2")
AXIAL = [1, 0, 0, 0, 1, 0]


# Whole files


def header(**elements: object) -> Dataset:
    """A grey CT slice without its pixels; `elements` replace or add to what describes it (None removes)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", "1.2.4", "1.2.5"
    dataset.PatientName, dataset.PatientID, dataset.Modality = SECRET, "SECRET-7", "CT"
    dataset.Rows, dataset.Columns = GREY.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = [1000, 40], [2000, 400]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelPaddingValue = 2, -1000, 0
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], AXIAL
    dataset.PixelSpacing, dataset.AcquisitionDateTime = [0.5, 0.5], "20240229131415"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def packed(dataset: Dataset, syntax: str = NATIVE) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"implicit_vr": syntax == IMPLICIT, "little_endian": syntax != BIG}
        dataset.save_as(stream, enforce_file_format=True, **settings)
    return stream.getvalue()


def compressed(frames: list[bytes], syntax: str, **elements: object) -> bytes:
    dataset = header(**elements, PixelData=encapsulate(frames))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return packed(dataset, syntax)


def enhanced(frames: int) -> bytes:
    """A multi-frame CT whose frames have their places."""

    def group(frame: int) -> Dataset:
        place, tones, item = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2.5 * frame]
        tones.RescaleSlope, tones.RescaleIntercept, tones.RescaleType = 1, -1000, "HU"
        item.PlanePositionSequence, item.PixelValueTransformationSequence = Sequence([place]), Sequence([tones])
        return item

    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, measures.PixelSpacing = AXIAL, [0.5, 0.5]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([plane]), Sequence([measures])
    groups = {"PerFrameFunctionalGroupsSequence": Sequence([group(frame) for frame in range(frames)])}
    groups["SharedFunctionalGroupsSequence"] = Sequence([shared])
    return packed(header(NumberOfFrames=frames, PixelData=GREY.tobytes() * frames, **groups))


def dicom_files() -> dict[str, bytes]:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], np.arange(4096, dtype="<u2").tobytes()
    table["LUTData"].VR = "OW"
    whole = {"PixelData": GREY.tobytes()}
    files = {f"native {syntax}": packed(header(**whole), syntax) for syntax in (NATIVE, IMPLICIT, DEFLATED)}
    files["big endian"] = packed(header(PixelData=GREY.byteswap().tobytes()), BIG)
    files["lookup table"] = packed(header(**whole, VOILUTSequence=Sequence([table])))
    files["enhanced"] = enhanced(4)
    floats = {"FloatPixelData": np.linspace(0, 1, GREY.size, dtype="<f4").tobytes(), "BitsStored": None}
    files["float"] = packed(header(**floats, BitsAllocated=32, HighBit=None, PixelPaddingValue=None))
    for syntax in ("5", "4.80", "4.90"):
        dataset = header(**whole)
        dataset.file_meta.TransferSyntaxUID = NATIVE
        dataset.compress(f"1.2.840.10008.1.2.{syntax}")
        files[f"compressed {syntax}"] = packed(dataset, f"1.2.840.10008.1.2.{syntax}")
    small = {"Rows": 12, "Columns": 16}
    files["htj2k"] = compressed([stream("htj2k 12 bits")], "1.2.840.10008.1.2.4.201", **small)
    files["lossless jpeg"] = compressed([stream("lossless jpeg 12 bits")], "1.2.840.10008.1.2.4.70", **small)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    files["jpeg"] = compressed([picture("JPEG")], "1.2.840.10008.1.2.4.50", **eight)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = packer.compress(GREY.tobytes()) + packer.flush()
    frames = compressed([deflated], "1.2.840.10008.1.2.4.50")
    files["deflated frames"] = frames.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.8.1\0", 1)
    return files


def stream(name: str) -> bytes:
    return base64.b64decode(CODESTREAMS[name])


def picture(kind: str, mode: str = "L", **settings: object) -> bytes:
    values = GREY if mode == "I;16" else np.stack([GREY // 16] * 4, -1).astype("u1")
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values, "RGBA").convert(mode)
    data = io.BytesIO()
    image.save(data, kind, **settings)
    return data.getvalue()


def other_files() -> dict[str, bytes]:
    files = {f"png {mode}": picture("PNG", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "I;16")}
    files |= {f"jpeg {mode}": picture("JPEG", mode) for mode in ("L", "RGB", "CMYK")}
    files["progressive jpeg"] = picture("JPEG", "RGB", progressive=True)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        files[f"tiff {compression}"] = picture("TIFF", "RGB", compression=compression)
    files["tiff jpeg"] = picture("TIFF", "RGB", compression="jpeg")
    files["tiff of 16 bits"] = picture("TIFF", "I;16", compression="tiff_lzw")
    pages = [Image.fromarray((GREY // 16).astype("u1"))] * 3
    data = io.BytesIO()
    pages[0].save(data, "TIFF", save_all=True, append_images=pages[1:])
    files["tiff of pages"] = data.getvalue()
    voxels = np.random.default_rng(3).integers(-1000, 1000, (6, 7, 8)).astype("<i2")
    for name, kind in (("nifti", Nifti1Image), ("nifti 2", Nifti2Image)):
        files[name] = kind(voxels, np.diag([1, 2, 3, 1])).to_bytes()
    files["nifti of floats"] = Nifti1Image(voxels.astype("<f4"), np.diag([-1, 2, 3, 1])).to_bytes()
    files["compressed nifti"] = gzip.compress(files["nifti"])
    return files


def sources() -> dict[str, bytes]:
    """Small files of every kind, written here, and the real ones where they are."""
    real = {path.name: path.read_bytes() for path in sorted(REAL.glob("*.dcm")) if path.stat().st_size < 50_000}
    return dicom_files() | other_files() | real


# Mutations


def mutated(data: bytes, random: random.Random) -> bytes:
    """A few bytes changed, copied, removed, added or cut off, mostly in the header."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randrange(min(len(changed), random.choice((60, 400, 1800, len(changed)))))
        kind = random.randrange(7)
        if kind == 0:
            changed[at] = random.randrange(256)
        elif kind == 1:
            size = random.choice((0, 1, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF))
            changed[at : at + 4] = struct.pack(random.choice(("<I", ">I")), size)
        elif kind == 2:
            changed[at : at + 8] = changed[(other := random.randrange(len(changed))) : other + 8]
        elif kind == 3:
            changed[at:at] = random.randbytes(random.randrange(1, 9))
        elif kind == 4:
            del changed[at + 1 : at + 1 + random.choice((1, 2, 100, len(changed)))]
        elif kind == 5:
            changed[at : at + 2] = struct.pack(random.choice(("<H", ">H")), random.choice((0, 1, 7, 0x7FFF, 0xFFFF)))
        elif (found := changed.find(struct.pack("<H", 0x28), at)) >= 0:
            changed[found + 4 : found + 10] = random.randbytes(6)
    return bytes(changed)


def nested(random: random.Random) -> bytes:
    """A DICOM file with sequences in sequences, or items without end, before its pixels."""
    whole = packed(header(PixelData=GREY.tobytes()))
    at = whole.rindex(b"\xe0\x7f\x10\x00")
    tag = random.choice(((0x28, 0x3010), (0x28, 0x3000), (0x28, 0x9999), (0x5200, 0x9230), (0x29, 0x10)))
    count = random.choice((3, 50, 2000, 20_000))
    item, opening = struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HH2sHI", *tag, b"SQ", 0, 0xFFFFFFFF)
    closing = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    inner = random.choice((item * count, (opening + item[:4] + b"\xff" * 4) * count, b"", item + closing))
    if random.random() < 0.5:
        inner = struct.pack("<HH2sHI", *tag, b"SQ", 0, len(inner)) + inner
    else:
        inner = opening + inner + closing
    return whole[:at] + inner + whole[at:]


def bomb(random: random.Random) -> bytes:
    """A small file that would become a large one."""
    side = random.choice((5000, 13_000, 60_000, 65_535))
    kind = random.randrange(9)
    if kind == 0:
        return packed(header(Rows=side, Columns=side, PixelData=GREY.tobytes()))
    if kind == 1:
        return packed(header(Rows=4000, Columns=side, PixelData=bytes(random.choice((10**6, 3 * 10**7)))), DEFLATED)
    if kind == 2:
        runs = struct.pack("<16L", 2, 64, 64 + 2 * side, *[0] * 13) + b"\x81\x00" * (2 * side)
        return compressed([runs], "1.2.840.10008.1.2.5", Rows=random.choice((48, side)))
    if kind == 3:
        return png_bomb(side)
    if kind == 4:
        return gzip.compress(Nifti1Image(np.zeros((300, 300, random.choice((20, 300))), "<i2"), np.eye(4)).to_bytes())
    if kind == 5:
        return tiff_bomb(random.choice((10, 2000)), random.choice((20, 4000)))
    if kind == 6:
        return compressed(
            [precincts(random.choice((0x11, 0x22, 0x44)))], "1.2.840.10008.1.2.4.90", Rows=1500, Columns=1500
        )
    if kind == 7:
        return scans(random.choice((10, 3000)))
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = packer.compress(bytes(random.choice((10**6, 5 * 10**7)))) + packer.flush()
    frames = compressed([deflated], "1.2.840.10008.1.2.4.50")
    return frames.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.8.1\0", 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def tiff_bomb(tags: int, kilobytes: int) -> bytes:
    """A TIFF each of whose entries names the whole file as its value."""
    data = bytes(1000 * kilobytes)
    own = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    own += [(277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    own += [(1000 + k, 1, len(data), 8) for k in range(tags)]
    entries = b"".join(struct.pack("<HHII", *one) for one in own)
    return b"II*\0" + struct.pack("<IH", 8, len(own)) + entries + bytes(4) + data


def precincts(size: int) -> bytes:
    """A black JPEG 2000 of 1500 x 1500 pixels whose precincts have sides of a few pixels."""
    dataset = header(Rows=1500, Columns=1500, BitsStored=16, HighBit=15, PixelData=bytes(2 * 1500**2))
    dataset.file_meta.TransferSyntaxUID = NATIVE
    dataset.compress("1.2.840.10008.1.2.4.90")
    data = dataset.PixelData
    data = data[data.index(b"\xff\x4f\xff\x51") : data.rindex(b"\xff\xd9") + 2]
    at = data.index(b"\xff\x52")
    length, style, levels = data[at + 3], data[at + 4], data[at + 9]
    coding = bytes([0, length + levels + 1, style | 1]) + data[at + 5 : at + 2 + length] + bytes([size]) * (levels + 1)
    return data[: at + 2] + coding + data[at + 2 + length :]


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = io.BytesIO()
    Image.fromarray(np.zeros((1000, 1000), "u1")).save(data, "JPEG", progressive=True)
    whole = data.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : whole.rindex(b"\xff\xd9")]
    return whole[: whole.rindex(b"\xff\xd9")] + last * count + b"\xff\xd9"


def inside(whole: dict[str, bytes], random: random.Random) -> bytes:
    """A mutant within what a checksum or a compression hides from the other mutations."""
    kind = random.randrange(3)
    if kind == 0:
        return gzip.compress(mutated(whole[random.choice(("nifti", "nifti of floats"))], random))
    if kind == 1:
        data = whole[f"native {DEFLATED}"]
        # After the group of the file itself, whose length stands at its start (PS3.10 7.1).
        start = 144 + struct.unpack("<I", data[140:144])[0]
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = mutated(zlib.decompress(data[start:], -zlib.MAX_WBITS), random)
        return data[:start] + packer.compress(body) + packer.flush()
    data = whole[random.choice(("png L", "png P", "png RGBA", "png I;16"))]
    at, chunks = 8, data[:8]
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        chunks += chunk(name, mutated(body, random) if body and random.random() < 0.5 else body)
        at += 12 + length
    return chunks


def mutants(count: int, first: int) -> Iterator[tuple[int, str, bytes]]:
    """So many mutants of all sources in turn, each with its number and the name of its kind."""
    whole = sources() | {SERIES: packed(header(PixelData=GREY.tobytes()))}
    made = {"nested": nested, "bomb": bomb, "inside": lambda own: inside(whole, own)}
    names = [*whole, *made]
    for number in range(first, first + count):
        name, own = names[number % len(names)], random.Random(number)
        yield number, name, made[name](own) if name in made else mutated(whole[name], own)


def outcome(path: Path, frame: int | None = None) -> str:
    """What came of a mutant: read, refused, or what is wrong with how it was taken."""
    try:
        pixels = read_image(path, frame=frame, limit_bytes=LIMIT_BYTES).pixels
    except InputError as error:
        message = str(error)
        named = message.startswith(str(path)) and len(message) > len(str(path)) + 20
        return "refused" if named and "\n" not in message and "SECRET" not in message.upper() else f"said {message}"
    right = pixels.dtype == np.float32 and pixels.ndim == 3 and pixels.min() >= 0 and pixels.max() <= 1
    return "read" if right else "pixels out of range"


def run(count: int, folder: Path, first: int = 0, *, report: bool = False) -> Watch:
    """Read mutants one after the other, from the first that is asked for."""
    watch = Watch(MOST_SECONDS, MOST_BYTES, report)
    series = folder / SERIES
    series.mkdir()
    for height in (2.5, 5):
        slices = {"ImagePositionPatient": [0, 0, height], "SOPInstanceUID": f"1.2.3.{height}"}
        (series / f"{height}.dcm").write_bytes(packed(header(PixelData=GREY.tobytes(), **slices)))
    for number, name, data in mutants(count, first):
        path = series if name == SERIES else folder / "mutant"
        (series / "0.dcm" if name == SERIES else path).write_bytes(data)
        watch.take(number, name, partial(outcome, path, 0 if name in OF_FRAMES else None))
    return watch


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
def test_mutated_files_give_pixels_in_range_or_a_refusal(tmp_path: Path):
    run(200, tmp_path).require_sound(refused=80)


if __name__ == "__main__":
    by_hand(partial(run, report=True))
