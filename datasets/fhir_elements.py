"""Data types of FHIR R4 as Python values: dates, references, codes, numbers, attached text.

Everything here takes what a stranger's JSON may hold: an element of the wrong type is a
`MalformedLineError` that names the element and never its content.

Source: HL7 FHIR R4 (4.0.1), Data Types, https://hl7.org/fhir/R4/datatypes.html
"""

from __future__ import annotations

import base64
import html
import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, TypeVar

from .ndjson import MalformedLineError
from .tables import LARGEST_LAB_VALUE

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"

MISSING = -(2**63)
"""A time that is not stated: what NaT is in an int64."""

_YEARS = range(1800, 3000)
# A day begins first where clocks are 14 h ahead of UTC, and ends last where they are 12 h behind.
_FIRST, _LAST = -14 * 3_600_000_000, 12 * 3_600_000_000
_DAY = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.toordinal()
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9\-._]{1,128}", re.ASCII)
_REFERENCE = re.compile(r"(?:.*/)?([A-Za-z]+)/([A-Za-z0-9\-._]{1,128})(?:/_history/[A-Za-z0-9\-._]+)?", re.ASCII)
_URN = "urn:uuid:"
_WORDS = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
_Part = TypeVar("_Part", dict, list, str, bool)


class Span(NamedTuple):
    """When something was, as closely as the source says: microseconds since 1970, UTC."""

    first: int
    last: int


NEVER = Span(MISSING, MISSING)


def part(element: dict, name: str, kind: type[_Part]) -> _Part | None:
    """One child element of the given JSON type, or None where it is absent.

    Raises:
        MalformedLineError: it is of another type.
    """
    value = element.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise MalformedLineError(f"{name} is not {_WORDS[kind]}")


def parts(element: dict, name: str) -> list[dict]:
    """A repeating child element; empty where it is absent."""
    values = part(element, name, list) or []
    for value in values:
        if not isinstance(value, dict):
            raise MalformedLineError(f"{name} holds something that is not an object")
    return values


def number(element: dict, name: str) -> float | None:
    """A finite number that a laboratory may report, or None where it is absent."""
    value = element.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedLineError(f"{name} is not a number")
    if abs(value) > LARGEST_LAB_VALUE:
        raise MalformedLineError(f"{name} is beyond ±{LARGEST_LAB_VALUE:.0e}, which no laboratory reports")
    return float(value)


def own_id(resource: dict) -> str:
    """The logical id that a resource has on its server."""
    name = part(resource, "id", str)
    if name is None or not _ID.fullmatch(name):
        raise MalformedLineError("its id is missing, or no FHIR id")
    return name


def updated(resource: dict) -> int:
    """`meta.lastUpdated`, which tells the versions of a resource apart; `MISSING` where it is not stated."""
    return instant(part(resource, "meta", dict) or {}, "lastUpdated")


def referred(element: dict, name: str, kind: str) -> str | None:
    """The id of the `kind` of resource that a reference names: relative, absolute, or by UUID.

    None where there is no reference, or one that leads out of the export: to a contained resource, to
    another kind, or by an identifier alone.
    """
    return _target(part(element, name, dict) or {}, kind)


def all_referred(element: dict, name: str, kind: str) -> list[str]:
    """The ids of a repeating reference; see `referred`."""
    return [target for one in parts(element, name) if (target := _target(one, kind)) is not None]


def _target(reference: dict, kind: str) -> str | None:
    text = part(reference, "reference", str)
    if text is None or text.startswith("#"):
        return None
    # Nearly all references are of this form.
    if text.startswith(f"{kind}/") and _ID.fullmatch(name := text[len(kind) + 1 :]):
        return name
    if text.startswith(_URN):
        return text.removeprefix(_URN)
    found = _REFERENCE.fullmatch(text)
    return found[2] if found and found[1] == kind else None


# Times


def span(element: dict, name: str) -> Span:
    """A date, dateTime or instant. A date alone is anywhere in its day, month or year, and anywhere on earth."""
    text = part(element, name, str)
    if text is None:
        return NEVER
    try:
        if len(text) > 10:
            moment = _instant(text)
            return Span(moment, moment)
        return _days(text)
    except (ValueError, OverflowError):
        raise MalformedLineError(
            f"{name} is no time of FHIR between the years {_YEARS[0]} and {_YEARS[-1]}, with a zone where it has hours"
        ) from None


def instant(element: dict, name: str) -> int:
    """An instant, or the last moment of a date; `MISSING` where it is absent."""
    return span(element, name).last


# Times repeat: the results of one sample, the moment of an export's last update.
@lru_cache(1 << 12)
def _instant(text: str) -> int:
    if text[10] != "T" or not (text[-1] == "Z" or text[-6] in "+-"):
        raise ValueError
    leap = text[17:19] == "60"
    moment = datetime.fromisoformat(text[:17] + "59" + text[19:] if leap else text)
    if moment.year not in _YEARS:
        raise ValueError
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds + leap) * 1_000_000 + since.microseconds


def _days(text: str) -> Span:
    found = _DATE.fullmatch(text)
    if not found or int(found[1]) not in _YEARS:
        raise ValueError
    year, month, day = int(found[1]), int(found[2] or 1), int(found[3] or 1)
    first = date(year, month, day)
    if found[3]:
        after = first + timedelta(days=1)
    else:
        after = date(year + (month == 12), month % 12 + 1, 1) if found[2] else date(year + 1, 1, 1)
    first, after = ((one.toordinal() - _EPOCH_DAY) * _DAY for one in (first, after))
    return Span(first + _FIRST, after + _LAST)


def period(element: dict, name: str) -> tuple[Span, Span]:
    """Start and end of a Period."""
    given = part(element, name, dict) or {}
    return span(given, "start"), span(given, "end")


# Codes


def codings(concept: dict) -> list[tuple[str, str, str]]:
    """System, code and display of each coding of a CodeableConcept that has a code; "" where not stated."""
    found = []
    for coding in parts(concept, "coding"):
        code = (part(coding, "code", str) or "").strip()
        if code:
            system, display = part(coding, "system", str) or "", part(coding, "display", str) or ""
            found.append((system.strip().rstrip("/"), code, display))
    return found


def token(concept: dict) -> str | None:
    """A CodeableConcept as one word: its LOINC code, else `system|code` as in FHIR's searches, else its text."""
    coded = codings(concept)
    for system, code, _ in coded:
        if system == LOINC:
            return code
    if coded:
        system, code, _ = coded[0]
        return f"{system}|{code}" if system else code
    return (part(concept, "text", str) or "").strip() or None


def codes(element: dict, name: str) -> set[str]:
    """All codes of a CodeableConcept, or of a list of them, whatever their system; lower case."""
    value = element.get(name)
    concepts = parts(element, name) if isinstance(value, list) else [part(element, name, dict) or {}]
    return {code.lower() for concept in concepts for _, code, _ in codings(concept)}


def unit_of(quantity: dict) -> str | None:
    """The unit of a Quantity: its UCUM code, else what is written beside the number, else another code."""
    code, written = part(quantity, "code", str), part(quantity, "unit", str)
    system = part(quantity, "system", str)
    if system and system.rstrip("/") == UCUM and code:
        return code.strip() or None
    return (written or code or "").strip() or None


# Text

_CHARSETS = {"", "utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "windows-1252"}
_BLOCKS = {"br", "p", "div", "tr", "li", "table", "h1", "h2", "h3", "h4", "h5", "h6", "section", "pre"}
_HIDDEN = {"script", "style", "title"}
_TAG = re.compile(r"[!/?]?[A-Za-z0-9\-]*", re.ASCII)


def attached_text(attachments: list[dict]) -> tuple[str | None, int]:
    """The text of the first plain attachment, else of the first in HTML, and when that was created.

    Several attachments are the same document in several formats. Only inline data are read, never a URL.
    """
    inline: dict[str, dict] = {}
    for attachment in attachments:
        form = (part(attachment, "contentType", str) or "").partition(";")[0].strip().lower()
        if part(attachment, "data", str):
            inline.setdefault(form, attachment)
    for form in ("text/plain", "text/html", "application/xhtml+xml"):
        if form in inline:
            text = _decoded(inline[form])
            text = text if form == "text/plain" else _without_markup(text)
            return text.strip() or None, instant(inline[form], "creation")
    return None, MISSING


def _decoded(attachment: dict) -> str:
    charset = re.search(r"charset\s*=\s*\"?([\w\-]+)", part(attachment, "contentType", str) or "", re.ASCII)
    charset = charset[1].lower() if charset else ""
    if charset not in _CHARSETS:
        raise MalformedLineError("an attachment is in a charset other than UTF-8, ASCII, ISO-8859-1 and Windows-1252")
    try:
        data = base64.b64decode("".join((part(attachment, "data", str) or "").split()), validate=True)
        return data.decode(charset or "utf-8").replace("\r\n", "\n").replace("\0", "")
    except ValueError:
        raise MalformedLineError("an attachment's data are not base64, or its text is not in its charset") from None


def _without_markup(text: str) -> str:
    """The words of an HTML page, in one pass; the text of scripts, styles, titles and comments goes."""
    first, *pieces = text.split("<")
    words = [first]
    hidden = ""
    for piece in pieces:
        tag = _TAG.match(piece)[0].lower()
        if not hidden and piece.startswith("!--"):
            hidden = "!--"
        elif not hidden and tag in _HIDDEN:
            hidden = tag
        if hidden == "!--":
            _, closed, after = piece.rpartition("-->")
        elif hidden:
            closed, after = tag == f"/{hidden}", piece.partition(">")[2]
        elif tag:
            closed, after = True, "\n" * (tag.lstrip("/") in _BLOCKS) + piece.partition(">")[2]
        else:
            # A bare "<", as in "creatinine < 2".
            closed, after = True, f"<{piece}"
        if closed:
            hidden = ""
            words.append(after)
    lines = (" ".join(line.split()) for line in html.unescape("".join(words)).split("\n"))
    return "\n".join(line for line in lines if line)
