"""What streams past on its way to the tokenizer: counted, reported, and refused where unusable."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from pellucid.core.errors import DataError
from pellucid.data.document import DataConfig, Document

REPORT_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]


class Survey:
    """Counts bytes and documents of one pass over a corpus."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.train: Counter[str] = Counter()
        self.validation: Counter[str] = Counter()

    def watch(
        self, documents: Iterable[Document], progress: Progress | None, stage: str, total: int
    ) -> Iterator[Document]:
        """The same documents; ``progress`` hears of every megabyte and of the end."""
        reported = 0
        for document in documents:
            counter = self.train if document.split == "train" else self.validation
            counter[document.domain] += 1
            self.num_bytes += len(document.text.encode())
            if progress is not None and self.num_bytes - reported >= REPORT_BYTES:
                reported = self.num_bytes
                progress(stage, reported, total)
            yield document
        if progress is not None:
            progress(stage, self.num_bytes, self.num_bytes)


def check_splits(
    config: DataConfig, train: Mapping[str, int], validation: Mapping[str, int]
) -> None:
    """Refuse document counts per domain on which no model could be trained and judged.

    Errors: no document at all, none to train on, a domain without a validation document.
    """
    if not train and not validation:
        raise DataError(f"{config.source}: the corpus is empty; expected documents with text")
    mend = (
        f"mark documents as train and validation in the field {config.split_field!r}, or leave "
        f"it out, which holds out {config.validation_share:.0%} (validation_share) of them"
    )
    if not train:
        raise DataError(f"{config.source}: the corpus has no training text; {mend}")
    for domain, count in sorted(train.items()):
        if domain not in validation:
            raise DataError(
                f"{config.source}: the domain {domain!r} has no validation text among its {count} "
                f"documents; {mend}, or raise that share or max_bytes"
            )
