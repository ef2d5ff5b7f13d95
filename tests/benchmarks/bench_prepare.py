"""Images from files to a store, beside a plain pass of pydicom's functions and a decoder's own rate.

    python tests/benchmarks/bench_prepare.py --files 48 --rounds 5

Makes uncompressed and compressed DICOM files of 2,048 x 2,500 pixels of 16 bits (14 used) with a window, and in
turn, so that all meet the same load of the machine: reads them as a short script would (`pixel_array`,
`apply_modality_lut`, `apply_voi_lut`, resize, in floating point), decodes them only, and prepares them to 224
pixels into a new store, by one process and by two. Prints images a second and medians of each round's ratios, in
wall time and in processor time. Of two processes the latter is half of what both take, or what the process takes
that writes, if that is more: what they would need if each had a processor, where others use the machine too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import psutil
import pydicom
from chiasm.datasets import Cohort
from chiasm.datasets.image_reader import ImageReader
from chiasm.datasets.prepared import prepare
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

SHAPE, SIZE = (2500, 2048), 224
SYNTAXES = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}


def write_file(path: Path, seed: int, syntax: str) -> None:
    """A smooth picture with the noise of a radiograph."""
    random = np.random.default_rng(seed)
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    smooth = 6000 + 2000 * (np.sin(columns / 300) + np.cos(rows / (400 + seed)))
    values = np.clip(smooth + random.normal(0, 30, SHAPE), 0, 2**14 - 1).astype("<u2")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = SYNTAXES["uncompressed"]
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", pydicom.uid.generate_uid()
    dataset.Rows, dataset.Columns = SHAPE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 14, 13
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.WindowCenter, dataset.WindowWidth = 6000, 6000
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax != SYNTAXES["uncompressed"]:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def plain_pass(paths: list[Path]) -> None:
    """What a short script does with each file."""
    rows, columns = SIZE, round(SHAPE[1] * SIZE / SHAPE[0])
    for path in paths:
        dataset = pydicom.dcmread(path)
        shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float32)
        low, high = shown.min(), shown.max()
        image = Image.fromarray((shown - low) / (high - low)).resize((columns, rows), Image.Resampling.BOX)
        np.rint(np.asarray(image) * 255).astype(np.uint8)


def decode_only(paths: list[Path]) -> None:
    for path in paths:
        _ = pydicom.dcmread(path).pixel_array


def prepared(paths: list[Path], jobs: int) -> None:
    """Into a new store, which is removed."""
    patients = {"subject_id": range(len(paths))}
    moment = pd.Timestamp("2024-01-01")
    outcomes = pd.DataFrame(patients | {"prediction_time": moment})
    images = pd.DataFrame(patients | {"time": moment, "path": [str(path) for path in paths]})
    with tempfile.TemporaryDirectory(dir=paths[0].parent) as folder, joblib.parallel_config(n_jobs=jobs):
        samples = prepare(Cohort(outcomes, images=images).with_store(folder), {"image": ImageReader(SIZE)})
        assert len(samples) == len(paths)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of wall time; and of processor time, this process's or what each of its workers has on average."""
    before, began = _processor_seconds(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - began, _processor_seconds()
    own, *workers = (seconds - before.get(process, 0) for process, seconds in after.items())
    return wall, max(own, sum(workers) / 2)


def _processor_seconds() -> dict[int, float]:
    own = psutil.Process()
    return {one.pid: sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True))}


def compare(paths: list[Path], rounds: int, two: bool) -> None:
    """Print rates and ratios for some files."""
    kinds = {
        "plain pass": lambda: plain_pass(paths),
        "decoding alone": lambda: decode_only(paths),
        "prepare, 1 process": lambda: prepared(paths, 1),
    }
    if two:
        kinds["prepare, 2 processes"] = lambda: prepared(paths, 2)
        # Both workers are there, with what they import.
        prepared(paths, 2)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, work in kinds.items():
            times[name].append(timed(work))
    for name, own in times.items():
        wall, processor = (len(paths) / statistics.median(column) for column in zip(*own, strict=True))
        print(f"  {name:22}{wall:7.1f} images/s of wall,{processor:7.1f} of processor time")
    one = times["prepare, 1 process"]
    for name, other in times.items():
        ratios = [[theirs[k] / own[k] for theirs, own in zip(other, one, strict=True)] for k in (0, 1)]
        wall, processor = map(statistics.median, ratios)
        print(f"  1 process is {processor:.2f} × the rate of {name} in processor time, {wall:.2f} × in wall time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=48, help="of each kind; 10 MB each without compression")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, syntax in SYNTAXES.items():
        count = arguments.files if name == "uncompressed" else max(2, arguments.files // 8)
        folder = Path(tempfile.mkdtemp())
        try:
            paths = [folder / f"{number}.dcm" for number in range(count)]
            for number, path in enumerate(paths):
                write_file(path, number, syntax)
            size = sum(path.stat().st_size for path in paths) / count / 1e6
            print(f"{name}: {count} files of {size:.1f} MB")
            compare(paths, arguments.rounds, two=name == "uncompressed")
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
