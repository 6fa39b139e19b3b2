"""Whether a tokenizer gives text back: one that does not makes bits per byte too good.

Bits per byte divide by all bytes of a document, but a model is asked only for what the tokens
hold: capitals, spaces or unknown words that the tokenizer drops would cost nothing. White space at
the ends of a text is left out of account, since many decoders trim it.

Cost: the first documents of each domain are encoded once more, and decoded.
"""

from collections import Counter

from pellucid.data.document import Document
from pellucid.data.tokenizer import TextTokenizer

DOCUMENTS, CHARACTERS = 8, 8000  # looked at: documents of a domain, characters of a document
SHOWN = 12  # characters from the first difference on


class LosslessCheck:
    """Looks at documents as they pass; ``loss`` says what came back changed first, if anything."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.loss: str | None = None
        self._tokenizer = tokenizer
        self._seen: Counter[str] = Counter()

    def see(self, document: Document) -> None:
        """Look at a document, if it is one of the first of its domain."""
        self._seen[document.domain] += 1
        if self.loss is not None or self._seen[document.domain] > DOCUMENTS:
            return
        text = document.text[:CHARACTERS].strip()
        back = self._tokenizer.decode(self._tokenizer.encode(text)).strip()
        if back == text:
            return
        pairs = enumerate(zip(text, back))
        place = next((i for i, (a, b) in pairs if a != b), min(len(text), len(back)))
        part = slice(place, place + SHOWN)
        self.loss = (
            f"the tokenizer loses text, which would make bits per byte too good: in document "
            f"{document.id} {text[part]!r} comes back as {back[part]!r}; choose another "
            "tokenizer, or set lossy_tokenizer to go on"
        )
