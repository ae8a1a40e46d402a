"""Bytes and seconds as text."""

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_bytes(count: float) -> str:
    """Format bytes with a unit; 1 GB = 1e9 bytes."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f} B"


def format_duration(seconds: float) -> str:
    """Format seconds with a unit."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds * 1000:.2f} ms" if seconds else "0"
