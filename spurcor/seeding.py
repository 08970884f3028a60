"""Seeds of everything that is drawn."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits from any parts; the same on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
