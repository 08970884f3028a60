"""The ways in which a command ends without a result."""


class UserError(ValueError):
    """A mistake of the user's, told in one sentence that names key, value and fix (exit code 2)."""


class RunError(RuntimeError):
    """A run or a sweep that was started properly and failed (exit code 1)."""


class PointError(Exception):
    """A point of a sweep that Hydra cannot compose; its cause says why (exit code 2)."""

    def __init__(self, overrides: list[str]) -> None:
        super().__init__(" ".join(overrides))
        self.overrides = overrides
