"""The spelling of a quantity -> its number, its unit, and the factor that a word such as million stands for.

Only text that leaves the number as it is counts as a unit: no other numbers, and no words such as dozen or squared.
"""

import re

from oneshot.tasks.normalise import word_set

SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "score": 20,
}  # fmt: skip
_CHANGING = word_set(
    "tenth tenths hundredth hundredths thousandth thousandths millionth millionths fifth fifths sixth sixths "
    "squared cubed factorial half halves third thirds quarter quarters and or to over plus minus times less more not "
    "at least most greater than about pairs pair percentage-points double twice triple remainder mod modulo power "
    "root negative between below above if when where except but"
) | {f"{scale}s" for scale in SCALES}
_SYNONYMS = (
    "m meter meters metre metres", "cm centimeter centimeters centimetre centimetres", "mm millimeter millimeters",
    "km kilometer kilometers kilometre kilometres", "in inch inches", "ft foot feet", "yd yard yards", "mi mile miles",
    "g gram grams", "kg kilogram kilograms", "mg milligram milligrams", "lb lbs pound pounds", "oz ounce ounces",
    "s sec secs second seconds", "min mins minute minutes", "h hr hrs hour hours", "day days", "week weeks",
    "month months", "yr yrs year years", "cent cents", "dollar dollars usd", "degree degrees deg",
    "l liter liters litre litres", "ml milliliter milliliters", "gallon gallons", "mph", "ms", "hz", "j joule joules",
    "n newton newtons", "w watt watts", "v volt volts", "k kelvin", "pa", "ev", "nm", "erg ergs", "cal calories",
)  # fmt: skip
UNITS = {name: group.split()[0] for group in _SYNONYMS for name in group.split()}
_COMPOUND = word_set("cm mm km kg mg ft lb lbs oz yd mi min hr hrs mph ml sec secs")

_TEXT = r"\\text\s*\{(?P<{name}>[^{{}}]*)\}"
_GROUP = r"\\text\s*\{[^{}]*\}(?:\s*\^\s*(?:\{[^{}]*\}|-?\d))?"
_IN_TEXT = re.compile(rf"(?P<body>.*?)(?P<unit>(?:\s*(?:/|\\cdot|\\degree)?\s*{_GROUP})+)\s*", re.DOTALL)
_IN_LETTERS = re.compile(
    r"(?P<body>.*\d.*?|.*[})])(?P<space>\s+|\\degree\s*)(?P<unit>[A-Za-z]{2,}|[CFKmgs])\.?(?:\s*\^\s*\{?[23]\}?)?",
    re.DOTALL,
)
_ATTACHED = re.compile(r"(?P<body>-?[\d.,]+|.*\})(?P<unit>[a-z]{2,3})(?:\s*\^\s*\{?[23]\}?)?", re.DOTALL)
_IN_BRACKETS = re.compile(r"(?P<body>[-\d.,]+)\s*\((?P<unit>[A-Za-z ]{2,})\)")
_PERCENT = re.compile(r"\s*(?:\\text\s*\{\s*(?:percent|per cent|%)\s*\}|percent)\s*$")
_DEGREES = re.compile(r"\s*\\degree\s*$")
_OF_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])[^+-]*$")  # the degrees are part of the value


def split_unit(text: str) -> tuple[str, str, int]:
    """Return (number, unit, factor); the unit is "" if there is none, and its canonical name if it is known."""
    text = _PERCENT.sub(r"\\%", text)
    if _DEGREES.search(text) and not _OF_ANGLE.search(text):
        return _DEGREES.sub("", text).strip(), "", 1
    for pattern in (_IN_TEXT, _IN_BRACKETS, _IN_LETTERS, _ATTACHED):
        match = pattern.fullmatch(text)
        if match is None or not match["body"].strip():
            continue
        words = _unit_words(match["unit"])
        if pattern is _ATTACHED and words not in ([name] for name in _COMPOUND):
            continue
        in_degrees = pattern is _IN_LETTERS and "degree" in match["space"] and words[:1] in (["C"], ["F"])
        if pattern is _IN_LETTERS and not in_degrees and not _is_plain_unit(match["body"], words[0] if words else ""):
            continue
        factor = 1
        if words and words[0].lower() in SCALES:
            factor, words = SCALES[words[0].lower()], words[1:]
        if any(word.lower() in _CHANGING or word.lower() in SCALES for word in words):
            continue
        body = _DEGREES.sub("", match["body"].strip())
        unit = UNITS.get(words[0].lower(), "") if len(words) == 1 else ""
        return re.sub(r"\s*(?:/|\\cdot)$", "", body), unit, factor
    return text, "", 1


def _unit_words(text: str) -> list[str]:
    plain = re.sub(r"\^\s*(?:\{[^{}]*\}|-?\d)|\\text|\\cdot|\\degree", " ", text)
    if re.search(r"\d", plain):
        return ["and"]  # another number is no unit
    return re.findall(r"[A-Za-z]+", plain)


def _is_plain_unit(body: str, word: str) -> bool:
    """Return whether letters after a number are a unit, and no variables: after a numeral, a known unit or a word."""
    if re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", body)):
        return False
    return word.lower() in UNITS or len(word) >= 4 or word.lower() in SCALES
