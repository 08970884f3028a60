"""Range checks of options; the message of their ValueError has the option's name and value."""


def require_positive(**options: float) -> None:
    """Raise ValueError unless each option is above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive")


def require_at_least(least: int, **options: float) -> None:
    """Raise ValueError unless each option is at least `least`."""
    for name, value in options.items():
        if not value >= least:
            raise ValueError(f"{name}={value} must be at least {least}")


def require_share(**options: float) -> None:
    """Raise ValueError unless each option is strictly between 0 and 1."""
    for name, value in options.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} must be between 0 and 1")
