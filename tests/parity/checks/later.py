"""Fixture files of methods that come later."""

from tests.parity.harness import known_gap

_REASON = "method not part of the library yet"

_PATTERNS: tuple[str, ...] = ()

for _pattern in _PATTERNS:
    known_gap(_pattern, _REASON)
