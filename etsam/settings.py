"""Settings as people read and compare them."""

from collections.abc import Mapping
from typing import Any


def flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b.c` -> value; what is empty is a value, too."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found
