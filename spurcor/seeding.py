"""Seeds of all random draws."""

import hashlib


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed hashed from the parts, the same on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
