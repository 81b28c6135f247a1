"""Problems that are made by rule."""


def hard():
    """Return sums of two numbers whose units carry."""
    pairs = [(a, b) for a in range(15, 100, 20) for b in range(19, 100, 20)]
    return [{"problem": f"{a}+{b}=?", "answer": a + b, "category": "addition"} for a, b in pairs]
