"""Options outside of their range are refused, with their name and value."""


def require_positive(**options: float) -> None:
    """Each is above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive")


def require_at_least(least: int, **options: float) -> None:
    """None is below `least`."""
    for name, value in options.items():
        if not value >= least:
            raise ValueError(f"{name}={value} must be at least {least}")


def require_share(**options: float) -> None:
    """Each is between 0 and 1, and neither."""
    for name, value in options.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} must be between 0 and 1")
