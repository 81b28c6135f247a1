"""A spelling of an answer in LaTeX, Unicode or plain text -> its canonical spelling.

The canonical spelling has no dollar signs, spacing commands, `\\left` or `\\right`; words are in `\\text{}`, vectors in
`\\vec{}`; fractions are `\\frac`. Its meaning is read elsewhere (reading.py).
"""

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Δ": "Delta", "Σ": "Sigma", "Φ": "Phi", "Ω": "Omega",
}  # fmt: skip
_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "∗": "*", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "°": r"^{\circ}", "º": r"^{\circ}", "′": "'", "″": "''", "’": "'", "…": r"\ldots ",
    "⋯": r"\ldots ", "∠": r"\angle ",
    "△": r"\triangle ", "±": r"\pm ", "∓": r"\mp ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "µ": r"\mu ", "⁄": "/", "∑": r"\sum ", "∫": r"\int ", "∏": r"\prod ",
    "，": ",", "；": ";", "：": ":", "（": "(", "）": ")",
    "£": "", "€": "", "¥": "", "₹": "", **{letter: rf"\{name} " for letter, name in _GREEK.items()},
}  # fmt: skip
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"))
_FUNCTIONS = (
    "arcsin arccos arctan arcsec arccsc arccot sinh cosh tanh sin cos tan sec csc cot log ln exp max min gcd lcm"
)
FUNCTION_NAMES = frozenset(_FUNCTIONS.split())

_TEXT_COMMANDS = r"text|textrm|textup|textnormal|textit|textsf|texttt|textbf|mbox|hbox|mathrm|operatorname\*?|rm|mathit"
_TEXT = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}")
_OLD_FONT = re.compile(r"\{?\\(?:rm|bf|it)\s+([A-Za-z]+)\}?")
_VECTOR = re.compile(
    r"\\(?:vec|mathbf|boldsymbol|bm|overrightarrow|mathbfit)\s*(?:\{([^{}]*)\}|(\\?[A-Za-z]+?)(?![A-Za-z]))"
)
_REPLACED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:\$|pounds|euro|yen)(?![A-Za-z])", ""),
        (r"\$", ""),
        (r"(?<!\\)\\[()]", ""),
        (r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|middle|[bB]igg?[lr]?)(?![A-Za-z])", ""),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:lvert|rvert|vert|mid|vline)(?![A-Za-z])", "|"),
        (r"\\l?brack(?![A-Za-z])", "["),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d{3})", ""),
        (r"(?<=\d)\s*,\s*\\!\s*(?=\d{3})", ""),
        (r"\\!", ""),
        (r"\{\s*\\?[,;: ~]\s*\}", " "),
        (r"(?<!\\)\\(?:[,;:>\s]|$|(?:quad|qquad|thinspace|medspace|enspace|nobreakspace|newline)(?![A-Za-z]))", " "),
        (r"~", " "),
        (r"\\[hv]space\*?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:dots|cdots|dotsc|dotsb|hdots|dotsm|dotso)(?![A-Za-z])", r"\\ldots "),
        (r"\.\s?\.\s?\.", r"\\ldots "),
        (r"\\(?:neq|not\s*=)(?![A-Za-z])", r"\\ne "),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge "),
        (r"<=|=<", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:approxeq|simeq|thickapprox)(?![A-Za-z])", r"\\approx "),
        (r"\\(?:land|wedge)(?![A-Za-z])", r" \\text{and} "),
        (r"\\(?:lor|vee)(?![A-Za-z])", r" \\text{or} "),
        (r"\\backslash(?![A-Za-z])", r"\\setminus "),
        (r"\\(?:mathbb|mathbf|Bbb)\s*\{?R\}?(?![A-Za-z])|\\(?:R|reals|Reals)(?![A-Za-z])", r"\\reals "),
        (r"\\mathbb\s*([A-Z])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\(?:degree|textdegree|degrees)(?![A-Za-z])", r"\\degree "),
        (r"\\prime(?![A-Za-z])", "'"),
        (r"\^\s*\{\s*('+)\s*\}|\^\s*('+)", r"\1\2"),
        (r"\\boxed\s*(?=\{)", ""),
        (r"\\underline\s*(?=\{)", ""),
        (r"(?:\\operatorname\*?|\\mathrm|\\text)\s*\{\s*(" + "|".join(_FUNCTIONS.split()) + r")\s*\}", r"\\\1 "),
        (r"\b(?:np|numpy|math|sympy|sp|mp)\.(?=[a-z])", ""),
        (r"(?<![\\A-Za-z])(?:asin|arcsin)(?=\s*[({])", r"\\arcsin "),
        (r"(?<![\\A-Za-z])(?:acos|arccos)(?=\s*[({])", r"\\arccos "),
        (r"(?<![\\A-Za-z])(?:atan|arctan)(?=\s*[({])", r"\\arctan "),
        (r"(?<![\\A-Za-z])(" + "|".join(_FUNCTIONS.split()) + r"|sqrt|pi)(?![A-Za-z])", r"\\\1 "),
        (r"\*\*", "^"),
        (r"\\pmod\s*\{\s*(\w+)\s*\}", r"\\pmod \1"),
        (r"\{([^{}]+)\\choose(?![A-Za-z])([^{}]+)\}", r"\\binom{\1}{\2}"),
    )
)  # fmt: skip
_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?: \d{3})+)(?![\d])")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]|\\[a-z]+))")


def word_set(words: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(words.split())


def normalise(text: str) -> str:
    """Return the canonical spelling; equal canonical spellings are equal answers."""
    if not text.isascii():
        text = _to_ascii(text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    if "\\" in text:
        text = _VECTOR.sub(_vector, text)
        text = _TEXT.sub(_words, _OLD_FONT.sub(r"\\text{\1}", text))
    text = re.sub(r"\s+", " ", text)
    text = _THOUSANDS.sub(lambda match: match[1].replace(" ", ""), text)
    return trim(text)


def trim(text: str) -> str:
    """Return a text without space and punctuation at its ends, and without braces around all of it."""
    while True:
        shorter = text.strip().rstrip(".,;:").strip()
        shorter = re.sub(r"\\text\{[\s.,;:]*\}$", "", shorter)
        if shorter.startswith("{") and _closes_at_the_end(shorter):
            shorter = shorter[1:-1]
        if shorter == text:
            return _without_stray_braces(text)
        text = shorter


def words_of(text: str) -> str:
    """Return a text's words in lower case, without commands, punctuation and articles."""
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    plain = re.sub(r"[^\w\s'+-]|_", " ", plain)
    words = plain.split()
    if len("".join(words)) > 1:  # a single letter is a name, whose case matters
        words = ["solution" if word.casefold() == "solutions" else word.casefold() for word in words]
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "a", "an") else words)


def _to_ascii(text: str) -> str:
    text = text.translate(_INVISIBLE)
    text = re.sub(r"√\s*\\left\s*\(([^()]*)\\right\s*\)", r"√(\1)", text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text)
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    return "".join(_UNICODE.get(c) if c in _UNICODE else unicodedata.normalize("NFKC", c) for c in text)  # type: ignore[misc]  # a key is there


def _vector(match: re.Match[str]) -> str:
    """Return a vector's canonical spelling; a bold number is that number."""
    name = (match[1] if match[1] is not None else match[2]).strip()
    return rf"\vec{{{name}}}" if re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?", name) else f"{{{name}}}"


def _words(match: re.Match[str]) -> str:
    """Return a text's canonical spelling; a single letter or a number in text is that letter or number."""
    words = match[1].strip()
    if words in ("e", "i", "d"):
        return words  # \mathrm{e} is e; another letter may be a unit
    if re.fullmatch(r"\(?[A-Za-z]\)?(?:\s*,\s*\(?[A-Za-z]\)?)+|\([A-Z]\)", words) or not re.search(r"[A-Za-z]", words):
        return words
    counted = re.fullmatch(r"(-?[\d.,/]+)\s+([A-Za-z].*)", words)
    return rf"{counted[1]} \text{{{counted[2]}}}" if counted is not None else rf"\text{{{words}}}"


def _closes_at_the_end(text: str) -> bool:
    """Return whether the brace that opens a text closes at its end."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.end() == len(text)
    return False


def _without_stray_braces(text: str) -> str:
    """Return a text without closing braces that nothing opens."""
    depth, kept, end = 0, [], 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        kept.append(text[end : match.start()])
        end = match.end()
        if match[0] == "}" and depth == 0:
            continue
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        kept.append(match[0])
    return "".join(kept) + text[end:]
