"""The strongest firing per document and the window around it."""

import torch

from pellucid.explore.contexts import AFTER, BEFORE, TopContexts


def _values(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows).unsqueeze(-1)


def test_one_window_per_document_strongest_first():
    top = TopContexts(1, keep=2)
    tokens = torch.arange(8).view(2, 4)
    document = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    # Peaks: document 0 has 3, document 1 has -5 (by magnitude), document 2 has 4.
    top.add(_values([[3.0, 2.0, 1.0, -5.0], [4.0, 3.9, 3.8, 3.7]]), tokens, document)
    first, second = top.top(0)
    assert (first.document, first.focus, first.values) == (1, 1, (1.0, -5.0))
    assert first.tokens == (2, 3)
    assert (second.document, second.focus) == (2, 0)
    assert second.tokens == (4, 5, 6, 7)


def test_windows_end_at_the_document_and_at_their_length():
    top = TopContexts(1, keep=3)
    value = torch.zeros(1, 100, 1)
    value[0, 50] = 1.0
    value[0, 95] = 2.0
    document = torch.zeros(1, 100, dtype=torch.long)
    document[:, 90:] = 1
    top.add(value, torch.arange(100).unsqueeze(0), document)
    late, middle = top.top(0)
    assert late.tokens == tuple(range(90, 100))
    assert late.focus == 5
    assert middle.tokens == tuple(range(50 - BEFORE, 50 + AFTER + 1))
    assert middle.focus == BEFORE


def test_a_document_over_two_batches_counts_once():
    top = TopContexts(1, keep=4)
    document = torch.zeros(1, 3, dtype=torch.long)
    for peak in (1.0, 5.0, 2.0):
        top.add(_values([[0.5, peak, 0.1]]), torch.tensor([[7, int(peak), 9]]), document)
    [window] = top.top(0)
    assert window.tokens == (7, 5, 9)


def test_masked_and_silent_places_are_never_shown():
    top = TopContexts(1, keep=4)
    document = torch.tensor([[-1, -1, 3, 3]])
    top.add(_values([[9.0, 9.0, 0.0, 0.0]]), torch.arange(4).unsqueeze(0), document)
    assert top.top(0) == []


def test_units_do_not_mix():
    top = TopContexts(2, keep=1)
    value = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    top.add(value, torch.tensor([[5, 6]]), torch.tensor([[0, 0]]))
    assert [top.top(u)[0].focus for u in range(2)] == [0, 1]
    assert top.top(1)[0].values == (0.0, 2.0)


def test_against_sorting_everything():
    keep, documents = 5, 40
    value = torch.randn(30, 16, 3)
    document = torch.randint(documents, (30, 1)).expand(30, 16).contiguous()
    top = TopContexts(3, keep)
    for start in range(0, 30, 4):
        part = slice(start, start + 4)
        top.add(value[part], torch.zeros(len(value[part]), 16, dtype=torch.long), document[part])
    for unit in range(3):
        peaks: dict[int, float] = {}
        for row in range(30):
            name = int(document[row, 0])
            peaks[name] = max(peaks.get(name, 0.0), float(value[row, :, unit].abs().max()))
        expected = sorted(peaks.values(), reverse=True)[:keep]
        found = [abs(window.values[window.focus]) for window in top.top(unit)]
        assert found == expected
