"""Names that a tracker takes: those that it would refuse are changed, no two into the same."""

import hashlib
import re

MLFLOW_LENGTH = 250  # of the key of a metric, parameter or tag


def mlflow_name(name: str, also: str = "") -> str:
    """A name as MLflow takes it: of letters, digits and `_-. /`, and a path in its plain form.

    `also`: more characters that stay. What is changed ends in a hash of the name, so names that
    only a changed character told apart are still two.
    """
    taken = re.sub(rf"[^\w\-. /{re.escape(also)}]", "_", name)
    parts = [part if part not in ("", ".", "..") else "_" for part in taken.split("/")]
    if parts[0].startswith(".."):  # a folder above, MLflow thinks
        parts[0] = f"_{parts[0]}"
    return (
        name
        if "/".join(parts) == name and len(name) <= MLFLOW_LENGTH
        else hashed("/".join(parts), name, MLFLOW_LENGTH)
    )


def hashed(shown: str, name: str, length: int) -> str:
    """A changed name with a hash of the original, in no more than `length` characters."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{shown[: length - 9]}-{digest}"


def shortened(name: str, length: int) -> str:
    """A name that is cut only where it must be, and then is still no other's."""
    return name if len(name) <= length else hashed(name, name, length)
