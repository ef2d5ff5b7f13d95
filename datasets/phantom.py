"""Drawn chest radiographs: an anatomy-like phantom, and the DICOM files it is written as.

Nothing here is a person. The one finding that a synthetic outcome may depend on is a lower-zone
consolidation; cardiac enlargement, a pacemaker and breast shadows are there to be mistaken for it.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

STORED_MAXIMUM = 4095
"""Largest stored value of a 12-bit radiograph (2^12 − 1)."""

FIELD_MM = 350.0
"""Side of the square detector field in millimetres (the 35 × 35 cm chest format)."""

EDGE = 0.06
"""Half-width of the blurred edge of an organ, in radii of that organ."""

IMPLEMENTATION_UID = "2.25.302934115067382715094718364205816327491"
"""Written as (0002,0012), so that bytes do not depend on the version of the writing library."""


@dataclass(frozen=True)
class Chest:
    """One patient's anatomy, the same in all the patient's radiographs.

    Lengths are in half-fields (the detector spans −1 to 1 in x to the viewer's right and in y
    downwards); densities in units of the soft-tissue density of the trunk's middle.
    """

    consolidation: bool
    side: int
    """−1 = viewer's left (the patient's right lung), 1 = viewer's right."""
    centre: tuple[float, float]
    radii: tuple[float, float]
    lobes: tuple[float, float]
    opacity: float
    trunk: float
    lung_radii: tuple[float, float]
    lung_density: float
    heart: float
    """Radius of the heart relative to a normal one; above 1.25 is cardiac enlargement."""
    diaphragm: tuple[float, float]
    rib_spacing: float
    rib_phase: float
    breast: float
    pacemaker: bool


def draw_chest(generator: np.random.Generator, *, consolidation: bool) -> Chest:
    """Draw a patient's anatomy; everything but the finding is independent of the finding.

    Args:
        generator: source of randomness, left advanced by a fixed number of draws.
        consolidation: whether a lower zone is consolidated.
    """
    uniform = generator.random(20)

    def between(low: float, high: float, place: int) -> float:
        return float(low + (high - low) * uniform[place])

    side = -1 if uniform[0] < 0.5 else 1
    enlarged = uniform[1] < 0.25
    return Chest(
        consolidation=consolidation,
        side=side,
        centre=(side * between(0.40, 0.50, 2), between(0.14, 0.34, 3)),
        radii=(between(0.17, 0.25, 4), between(0.16, 0.25, 5)),
        lobes=(between(0.05, 0.2, 6), between(0, 2 * np.pi, 7)),
        opacity=between(0.26, 0.42, 8),
        trunk=between(0.80, 0.92, 9),
        lung_radii=(between(0.29, 0.34, 10), between(0.58, 0.68, 11)),
        lung_density=between(0.36, 0.44, 12),
        heart=between(1.3, 1.6, 13) if enlarged else between(0.85, 1.15, 13),
        diaphragm=(between(0.50, 0.60, 14), between(0.52, 0.62, 15)),
        rib_spacing=between(0.17, 0.22, 16),
        rib_phase=between(0, 2 * np.pi, 17),
        breast=between(0.04, 0.10, 18) if uniform[18] < 0.5 else 0.0,
        pacemaker=bool(uniform[19] < 0.12),
    )


@lru_cache(maxsize=4)
def _field(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of pixel centres in half-fields, x along a row and y down a column."""
    line = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return line[None, :], line[:, None]


def _step(distance: np.ndarray, edge: float = EDGE) -> np.ndarray:
    """1 well inside (negative distance), 0 well outside, smooth in between."""
    inside = np.clip(0.5 - distance / (2 * edge), 0, 1)
    return inside * inside * (3 - 2 * inside)


def _radius(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Distance from a centre in units of an ellipse's radii: 1 on its outline."""
    return np.sqrt(((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2)


def _opacity(chest: Chest, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Density a consolidation adds within the lungs: a lobulated, soft-edged patch."""
    angle = np.arctan2(y - chest.centre[1], x - chest.centre[0])
    depth, phase = chest.lobes
    reach = _radius(x, y, chest.centre, chest.radii) * (1 + depth * np.cos(3 * angle + phase))
    return chest.opacity * _step(reach - 1, 0.35)


def _devices(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A pacemaker: its can below the left clavicle, its lead to the right ventricle."""
    can = _step(np.maximum(np.abs(x - 0.52) / 0.11, np.abs(y + 0.50) / 0.09) - 1, 0.1)
    along = np.clip((y + 0.45) / 0.75, 0, 1)
    lead = _step(np.abs(x - (0.45 - 0.9 * along + 0.7 * along**2)) / 0.018 - 1, 0.5) * ((y > -0.45) & (y < 0.30))
    return 0.8 * np.maximum(can, lead)


def draw_radiograph(
    chest: Chest, generator: np.random.Generator, *, size: int = 128, anteroposterior: bool = False
) -> Float[np.ndarray, "height width"]:
    """Draw one frontal radiograph of a chest: dense is bright, as on a MONOCHROME2 display.

    Args:
        chest: the anatomy.
        generator: source of positioning and noise, different for each exposure.
        size: height and width in pixels.
        anteroposterior: AP instead of PA projection, which magnifies the heart by 12 %.

    Returns:
        Density, 0 (air outside the body) to about 1 (bone over mediastinum), noise included.
    """
    across, down = _field(size)
    shift_x, shift_y, turn = generator.uniform(-1, 1, 3) * (0.04, 0.04, 0.05)
    x = across - shift_x + turn * down
    y = down - shift_y - turn * across

    # Trunk: neck and shoulders above, nearly straight flanks below.
    shoulder = chest.trunk * (0.24 + 0.76 / (1 + np.exp(-14 * (y + 0.80))))
    density = 0.55 * _step(np.abs(x) / shoulder - 1)

    # The heart, mostly to the viewer's right, hides the lung behind it.
    magnified = chest.heart * (1.12 if anteroposterior else 1.0)
    heart = _step(_radius(x, y, (0.10, 0.28), (0.29 * magnified, 0.27 * magnified)) - 1, 0.12)

    # Lungs, narrower above, cut off below by the two domes of the diaphragm.
    centres = ((-0.42, -0.05), (0.42, -0.05))
    lungs = np.zeros_like(density)
    for centre, dome in zip(centres, chest.diaphragm, strict=True):
        arch = dome - 0.05 + 1.2 * (x - centre[0]) ** 2
        narrowed = centre[0] + (x - centre[0]) * (1 - 0.25 * np.clip(y, -1, 0.4))
        lungs += _step(_radius(narrowed, y, centre, chest.lung_radii) - 1) * _step((y - arch) / 0.3)
    lungs *= 1 - 0.85 * heart
    density -= chest.lung_density * lungs

    # Mediastinum with spine, and what the heart adds to it.
    density += 0.20 * np.exp(-((x / 0.13) ** 2)) + 0.08 * heart

    # Ribs over the lungs, breast shadows over both lower zones, and devices.
    bow = (np.abs(x) - 0.35) ** 2 * 0.9
    ribs = np.cos(2 * np.pi * (y - bow) / chest.rib_spacing + chest.rib_phase)
    density += 0.07 * np.clip(ribs, 0, 1) * _step(np.abs(x) / (0.95 * chest.trunk) - 1)
    if chest.breast:
        for centre in ((-0.44, 0.36), (0.44, 0.36)):
            density += chest.breast * _step(_radius(x, y, centre, (0.32, 0.26)) - 1, 0.3)
    if chest.pacemaker:
        density = np.maximum(density, _devices(x, y))

    if chest.consolidation:
        density += _opacity(chest, x, y) * lungs
    noise = generator.standard_normal((size, size), dtype=np.float32)
    return np.clip(density + 0.025 * noise, 0, None)


def instance_uid(*parts: object) -> str:
    """A DICOM UID that depends on nothing but its parts (PS3.5 B.2: a 128-bit number under 2.25)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def write_radiograph(
    path: Path,
    density: Float[np.ndarray, "height width"],
    generator: np.random.Generator,
    *,
    subject_id: str,
    time: np.datetime64,
    uids: tuple[str, str, str],
    inverted: bool,
    computed: bool = False,
    view: str = "PA",
) -> None:
    """Write one radiograph as a 12-bit DICOM file, explicit VR little endian, uncompressed.

    The exposure varies, so a stored value means density only through the window, where there is
    one: a third of the files have none, a third one, a third two (the first is the one to use).
    MONOCHROME1 files store 4095 − value, and must be inverted once to look like the others; in
    Digital X-Ray files Presentation LUT Shape (2050,0020) says the same thing a second time.

    Args:
        path: where to write.
        density: what `draw_radiograph` returned.
        generator: source of exposure and window.
        subject_id: Patient ID (0010,0020).
        time: of the exposure, to the second.
        uids: study, series and instance UID.
        inverted: MONOCHROME1 instead of MONOCHROME2.
        computed: Computed Radiography instead of Digital X-Ray storage.
        view: View Position (0018,5101).

    Source: DICOM PS3.3 C.7.6.3 (pixels), C.8.11.3 (Digital X-Ray), C.11.2 (windows).
    """
    record = _header(uids, time, computed=computed)
    record.PatientID, record.ViewPosition = subject_id, view

    # Exposure: the same density is stored as different values.
    offset, gain = generator.uniform(150, 450), generator.uniform(2200, 3100)
    stored = np.clip(np.rint(offset + gain * density), 0, STORED_MAXIMUM).astype("<u2")
    height, width = stored.shape
    record.SamplesPerPixel, record.BitsAllocated, record.BitsStored, record.HighBit = 1, 16, 12, 11
    record.PixelRepresentation, record.Rows, record.Columns = 0, height, width
    record.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    record.ImagerPixelSpacing = [f"{FIELD_MM / height:.4f}", f"{FIELD_MM / width:.4f}"]
    if not computed:
        record.PresentationIntentType = "FOR PRESENTATION"
        record.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
        # Sign: −1 where a higher stored value means less radiation reached the detector.
        record.PixelIntensityRelationship, record.PixelIntensityRelationshipSign = "LOG", 1 if inverted else -1
        record.RescaleIntercept, record.RescaleSlope, record.RescaleType = "0", "1", "US"
    _add_windows(record, generator, middle=offset + 0.5 * gain, breadth=1.1 * gain, inverted=inverted)
    record.PixelData = (STORED_MAXIMUM - stored if inverted else stored).astype("<u2").tobytes()
    record.save_as(path, enforce_file_format=True)


def _header(uids: tuple[str, str, str], time: np.datetime64, *, computed: bool) -> "Dataset":
    """A record that says which study, when and on what, and of the patient nothing but the examined part."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
    )

    record = Dataset()
    record.StudyInstanceUID, record.SeriesInstanceUID, record.SOPInstanceUID = uids
    record.SOPClassUID = ComputedRadiographyImageStorage if computed else DigitalXRayImageStorageForPresentation
    record.Modality = "CR" if computed else "DX"
    moment = str(time.astype("datetime64[s]")).replace("-", "").replace(":", "")
    record.StudyDate = record.AcquisitionDate = moment[:8]
    record.StudyTime = record.AcquisitionTime = moment[9:]
    record.PatientName, record.PatientBirthDate, record.PatientSex, record.AccessionNumber = "", "", "", ""
    record.ReferringPhysicianName, record.StudyID, record.Manufacturer = "", "", ""
    record.BodyPartExamined, record.SeriesNumber, record.InstanceNumber = "CHEST", 1, 1
    record.BurnedInAnnotation, record.LossyImageCompression = "NO", "00"

    record.file_meta = FileMetaDataset()
    record.file_meta.MediaStorageSOPClassUID = record.SOPClassUID
    record.file_meta.MediaStorageSOPInstanceUID = record.SOPInstanceUID
    record.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    return record


def _add_windows(
    record: "Dataset", generator: np.random.Generator, *, middle: float, breadth: float, inverted: bool
) -> None:
    """Give a record no window, one, or two (the whole chest, then a narrower one for the lungs)."""
    windows = int(generator.integers(3))
    if not windows:
        return
    centres, widths = (middle, middle - 0.2 * breadth), (breadth, 0.5 * breadth)
    if inverted:
        centres = tuple(STORED_MAXIMUM - centre for centre in centres)
    record.WindowCenter = [f"{centre:.1f}" for centre in centres[:windows]]
    record.WindowWidth = [f"{width:.1f}" for width in widths[:windows]]
    record.WindowCenterWidthExplanation = ["CHEST", "LUNG"][:windows]
