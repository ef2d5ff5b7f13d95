"""Units of measurement as hospitals spell them, read into one spelling (UCUM), a dimension and a size.

Source: The Unified Code for Units of Measure 2.1, https://ucum.org/ucum. Where we differ: laboratories mix
the cases of letters, and write no mega- or giga-grams; so case is ignored ("MG/DL" is mg/dL), and the
enzyme unit U and the international unit [IU] count as one, since no analyte is reported in both senses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Unit:
    """A unit: `base = value × factor + offset`, in the base unit of its dimension."""

    symbol: str
    """In UCUM, such as `mg/dL` or `10*3/uL`."""
    dimension: str
    """What may be converted into what, written as its base unit: `g/L`, `mol/L`, `1/L`, `K`."""
    factor: float = 1.0
    offset: float = 0.0


_PREFIXES = {"k": 1e3, "": 1.0, "d": 1e-1, "c": 1e-2, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}
# Spelling in lower case: UCUM, base and size. A katal is a mole a second, a unit a micromole a minute.
_ATOMS = {
    "g": ("g", "g", 1.0),
    "mol": ("mol", "mol", 1.0),
    "eq": ("eq", "eq", 1.0),
    "osm": ("osm", "osm", 1.0),
    "u": ("U", "U", 1.0),
    "iu": ("[IU]", "U", 1.0),
    "[iu]": ("[IU]", "U", 1.0),
    "kat": ("kat", "U", 6e7),
    "l": ("L", "L", 1.0),
    "m": ("m", "m", 1.0),
}
_TIMES = {"s": ("s", 1), "sec": ("s", 1), "min": ("min", 60), "h": ("h", 3600), "hr": ("h", 3600)}
_TIMES |= {"d": ("d", 86400), "day": ("d", 86400), "24h": ("d", 86400), "24hr": ("d", 86400)}
_MEASURE = re.compile(rf"([{''.join(_PREFIXES)}]?)({'|'.join(map(re.escape, sorted(_ATOMS, key=len, reverse=True)))})")

_NAMED = {
    Unit("%", "1", 0.01): "% percent pct",
    Unit("1", "1"): "1 {fraction} fraction",
    Unit("{INR}", "INR"): "{inr} inr",
    Unit("{ratio}", "ratio"): "{ratio} ratio",
    Unit("L/L", "1"): "l/l",
    Unit("Cel", "K", 1.0, 273.15): "cel c °c degc celsius deg.c [degc]",
    Unit("[degF]", "K", 5 / 9, 459.67 * 5 / 9): "[degf] f °f degf fahrenheit deg.f",
    Unit("K", "K"): "k kelvin",
    # Conventional millimetre of mercury and centimetre of water (BIPM, UCUM).
    Unit("mm[Hg]", "Pa", 133.322387415): "mm[hg] mmhg torr",
    Unit("cm[H2O]", "Pa", 98.0665): "cm[h2o] cmh2o",
    Unit("kPa", "Pa", 1e3): "kpa",
    # International pound and inch (1959).
    Unit("[lb_av]", "g", 453.59237): "[lb_av] lb lbs pound pounds",
    Unit("[oz_av]", "g", 28.349523125): "[oz_av] oz ounce ounces",
    Unit("[in_i]", "m", 0.0254): "[in_i] [in_us] in inch inches",
    Unit("[ft_i]", "m", 0.3048): "[ft_i] ft foot feet",
    Unit("/min", "1/s", 1 / 60): "/min 1/min bpm beats/min {beats}/min breaths/min {breaths}/min {resp}/min",
    Unit("[pH]", "pH"): "[ph] ph {ph}",
    Unit("mL/min/{1.73_m2}", "L/s of 1.73 m2", 1e-3 / 60): (
        "ml/min/{1.73_m2} ml/min/1.73m2 ml/min/1.73_m2 ml/min/1.73m^2 ml/min/{1.73m2} ml/min/1.73sqm ml/min/1.73"
    ),
}
_SPECIAL = {spelling: unit for unit, spellings in _NAMED.items() for spelling in spellings.split()}
_SPECIAL |= {name: Unit(symbol, "s", size) for name, (symbol, size) in _TIMES.items()}

# Counts, as in "10*3/uL", "x10E9/L", "K/mm3", "{cells}/uL".
_THING = r"(?:\{?(?:cells?|rbcs?|wbcs?|plts?|platelets?|#|count)\}?)?"
_COUNT = re.compile(rf"x?(?:10(?:[*^e]\(?|\()(\d\d?)\)?|e(\d\d?)|(1000|thousand|thous?|tsd|k))?{_THING}")
_MILLIONS = re.compile(rf"(?:m|mil|mill|millions?|x?1000000){_THING}")
_VOLUMES = {"l": ("L", 1.0), "dl": ("dL", 0.1), "ml": ("mL", 1e-3), "ul": ("uL", 1e-6), "nl": ("nL", 1e-9)}
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_FIBRIN = re.compile(r"(.+?)[,({]*(feu|ddu)[)}]?")
"""D-dimer is given in two kinds of units, of fibrinogen (FEU) and of itself (DDU), that are not the same mass."""
_LONGEST = 64
_RESPELT = [
    (re.compile(written), meant)
    for written, meant in [
        (r"mm[\^*]?3|cu\.?mm", "ul"),
        (r"cm[\^*]?3|\bcc\b", "ml"),
        (r"mcg", "ug"),
        (r"\bunits?\b", "u"),
        (r"lit(er|re)s?\b", "l"),
        (r"/100ml|(?<=g)%", "/dl"),
        (r"(?<=kg)\{?h2o\}?", ""),
    ]
]


def parse_unit(text: str, *, counts: bool | None = None) -> Unit | None:
    """The unit that a spelling means, or None where it is not known or could mean two.

    Args:
        text: as it stands in the source.
        counts: whether the analyte is counted (cells) or weighed, for "G/L", which is giga (10*9) or gram a litre.
    """
    if len(text) > _LONGEST:
        return None
    if text.strip() == "G/L":
        return None if counts is None else _plain("10*9/l" if counts else "g/l")
    return _parsed(text)


@lru_cache(1 << 12)
def _parsed(text: str) -> Unit | None:
    text = _SUPERSCRIPTS.sub(lambda digits: "^" + digits[0].translate(_DIGITS), text.strip())
    for old, new in (("µ", "u"), ("μ", "u"), ("×", "x"), (" per ", "/")):
        text = text.replace(old, new)
    return _plain(re.sub(r"\s+", "", text).lower())


def _plain(text: str) -> Unit | None:
    """A unit in lower case and without spaces."""
    fibrin = _FIBRIN.fullmatch(text)
    if fibrin:
        unit = _plain(fibrin[1])
        kind = fibrin[2].upper()
        return unit and Unit(f"{unit.symbol}{{{kind}}}", f"{unit.dimension} of {kind}", unit.factor)
    for written, meant in _RESPELT:
        text = written.sub(meant, text)
    return _SPECIAL.get(text) or _counted(text) or _measured(text)


def _counted(text: str) -> Unit | None:
    things, slash, volume = text.partition("/")
    if not slash or volume not in _VOLUMES:
        return None
    spelt, size = _VOLUMES[volume]
    if things == "t" and volume == "l":
        power = 12
    elif volume in ("ul", "nl") and _MILLIONS.fullmatch(things):
        power = 6
    else:
        found = _COUNT.fullmatch(things)
        if not found:
            return None
        power = 3 if found[3] else int(found[1] or found[2] or 0)
    if power > 15:
        return None
    return Unit(f"10*{power}/{spelt}" if power else f"/{spelt}", "1/L", 10.0**power / size)


def _measured(text: str) -> Unit | None:
    """A quantity by one or more others: `mg/dL`, `ug/kg/min`, `kg`."""
    symbols, bases, factor = [], [], 1.0
    for position, piece in enumerate(text.split("/")):
        if position and piece in _TIMES:
            symbol, size = _TIMES[piece]
            base = "s"
        else:
            found = _MEASURE.fullmatch(piece)
            if not found:
                return None
            symbol, base, size = _ATOMS[found[2]]
            symbol, size = found[1] + symbol, size * _PREFIXES[found[1]]
        symbols.append(symbol)
        bases.append(base)
        factor = factor / size if position else factor * size
    return Unit("/".join(symbols), "/".join(bases), factor)
