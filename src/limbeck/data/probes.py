"""Texts on which tokenizers that differ tend to part (I10)."""

from __future__ import annotations

__all__ = ["PROBES"]

PROBES: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space, trailing space ",
    "MiXeD cAsE, ALL CAPS, snake_case, camelCase, kebab-case",
    "It's they're we'll I've he'd isn't",
    "0 1 12 123 1234 12345 1234567890 3.14159 -1e-10 1,000,000 0x1F",
    "  two   three    four     spaces",
    "\ttab\t\ttabs\nline\n\nblank line\r\nreturn\r\n \n \t \n",
    "def f(x: int) -> int:\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "<|endoftext|> <s> </s> <pad> [INST] <|im_start|>",
    "naïve café Zürich œuvre Łódź straße İstanbul",
    "Ελληνικά Русский עברית العربية हिन्दी ไทย",
    "中文字符 日本語のテキスト 한국어",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 ✈️ 🇫🇷 e\u0301 \u200b \ufeff \u00a0",
    "∑∫√∞≠≤≥ ← → ½ ¼ ² ™ © “quotes” ‘single’ … — –",
    "aaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!--------========",
    "https://example.org/a?b=c&d=%20e#f user@example.org C:\\dir\\file.txt",
    "".join(chr(i) for i in range(256)),
    "".join(chr(i << 6) for i in range(4, 0x400) if not 0xD800 <= i << 6 <= 0xDFFF),
)
"""Words, numbers, white space, code, scripts, emoji, every byte."""
