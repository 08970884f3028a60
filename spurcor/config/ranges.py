"""Options outside of their range are refused, with their name and value."""

import math


def require_positive(**options: float) -> None:
    """Each is finite, and above 0."""
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive, and finite")


def require_at_least(least: int, **options: float) -> None:
    """Each is finite, and not below `least`."""
    for name, value in options.items():
        if not least <= value < math.inf:
            finite = ", and finite" if isinstance(value, float) else ""
            raise ValueError(f"{name}={value} must be at least {least}{finite}")


def require_share(**options: float) -> None:
    """Each is between 0 and 1, and neither."""
    for name, value in options.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} must be between 0 and 1")
