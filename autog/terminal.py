"""What may reach a terminal: text without control characters, whoever wrote it."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t"
HIDDEN = {"Cc", "Cf", "Cs", "Co"}  # controls, formats such as bidi overrides, surrogates, private use


def printable(text: str) -> str:
    """The text with every control character but newline and tab shown as U+FFFD, one by one."""
    return "".join(
        char if char in KEPT or unicodedata.category(char) not in HIDDEN else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )
