"""Signals sent to this very process: the first asks, the second SIGINT interrupts."""

import os
import signal

import pytest

from pellucid.train.stop import StopOnSignal


def send(number: int) -> None:
    """A signal to oneself is handled before ``os.kill`` returns to Python."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_asks_for_a_stop(number: int):
    with StopOnSignal() as stop:
        assert not stop.asked()
        send(number)
        assert stop.asked()


def test_a_second_interrupt_does_not_wait():
    with StopOnSignal() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.asked()


def test_an_interrupt_after_a_termination_does_not_wait():
    with StopOnSignal():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_termination_may_be_asked_twice():
    # A supervisor repeats SIGTERM before it kills; the checkpoint must still be finished.
    with StopOnSignal() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.asked()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopOnSignal():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="disk"), StopOnSignal():
        raise OSError("disk")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
