"""Valid names for trackers: invalid ones are changed, so that they stay distinct."""

import hashlib
import re

MLFLOW_LENGTH = 250  # of the name of a metric, parameter or tag


def mlflow_name(name: str, also: str = "") -> str:
    """Return a valid MLflow name: letters, digits and `_-. /`, and a normalised path.

    `also`: further characters that are allowed. A changed name ends in a hash of the original, so
    different names stay different.
    """
    taken = re.sub(rf"[^\w\-. /{re.escape(also)}]", "_", name)
    parts = [part if part not in ("", ".", "..") else "_" for part in taken.split("/")]
    if parts[0].startswith(".."):  # MLflow takes it for a parent folder
        parts[0] = f"_{parts[0]}"
    return (
        name
        if "/".join(parts) == name and len(name) <= MLFLOW_LENGTH
        else hashed("/".join(parts), name, MLFLOW_LENGTH)
    )


def hashed(shown: str, name: str, length: int) -> str:
    """Append a hash of the original to a changed name, within `length` characters."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{shown[: length - 9]}-{digest}"


def shortened(name: str, length: int) -> str:
    """Return a name cut to `length` characters, if needed, with a hash that keeps it unique."""
    return name if len(name) <= length else hashed(name, name, length)
