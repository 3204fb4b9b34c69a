"""Numbers, reasons and names as a person reads them."""

from raypipe.reasons import REASONS


def count(number: int, noun: str) -> str:
    """1 → "1 image", 2000 → "2,000 images"; the plural of identity is irregular."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def percent(share: float, digits: int = 1) -> str:
    """0.1234 → "12.3 %"."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def signed(value: float, digits: int = 2) -> str:
    """-0.123 → "−0.12", with a real minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """71.3 → "1 min 11 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(number: float) -> str:
    """Bytes with a unit: 1234567 → "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError


def short_reason(reason: str) -> str:
    """ "clean:other_person" → "other person"."""
    return reason.partition(":")[2].replace("_", " ") or reason


def reason_sentence(reason: str) -> str:
    """What a reason of rejection means, as a sentence."""
    text = REASONS.get(reason, f"{short_reason(reason)}, said the job {reason.partition(':')[0]}")
    return text[0].upper() + text[1:] + "."


def short_digest(digest: str) -> str:
    """The first 12 of 64 digits: enough to compare by eye."""
    return digest[:12]
