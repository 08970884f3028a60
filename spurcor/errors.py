"""The two ways in which a command ends without a result."""


class UserError(ValueError):
    """A mistake of the user's, told in one sentence that names key, value and fix (exit code 2)."""


class RunError(RuntimeError):
    """A run or a sweep that was started properly and failed (exit code 1)."""
