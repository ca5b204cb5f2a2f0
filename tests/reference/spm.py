"""llama.cpp's SentencePiece tokenizer (``llm_tokenizer_spm``), slow and obvious: the best-scored pair merges first."""

from __future__ import annotations

__all__ = ["spm_encode"]


def spm_encode(text: str, tokens: list[str], scores: list[float], prefix: bool) -> list[int]:
    """Ids of ``text`` by the vocabulary as a GGUF file has it."""
    place = {token: i for i, token in enumerate(tokens)}
    symbols = list(((" " if prefix and text else "") + text).replace(" ", "\u2581"))
    while True:
        pairs = [
            (-scores[place[a + b]], i)
            for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))
            if a + b in place
        ]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    out: list[int] = []
    for symbol in symbols:
        whole = place.get(symbol)
        out += [whole] if whole is not None else [place[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return out
