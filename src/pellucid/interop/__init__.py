"""Dictionaries of other tools, read and written exactly or refused with the reason.

To add a format: one file with its reader and writer, a line in ``forms.HOLDS`` for what it can
hold, and a line in ``CONVERTERS``.
"""

from pellucid.interop.circuit_tracer import read_circuit_tracer, write_circuit_tracer
from pellucid.interop.converter import Converter, Imported, ReadOptions, WriteOptions
from pellucid.interop.dictionary_learning import (
    read_dictionary_learning,
    write_dictionary_learning,
)
from pellucid.interop.saelens import read_saelens, write_saelens
from pellucid.interop.sparsify import read_sparsify, write_sparsify

CONVERTERS: tuple[Converter, ...] = (
    Converter(
        name="saelens",
        says="SAELens folders: SAEs and transcoders",
        read=read_saelens,
        write=write_saelens,
    ),
    Converter(
        name="sparsify",
        says="sparsify folders, one per hookpoint: TopK and groupmax, SAEs and transcoders",
        read=read_sparsify,
        write=write_sparsify,
    ),
    Converter(
        name="dictionary_learning",
        says="dictionary_learning folders: SAEs",
        read=read_dictionary_learning,
        write=write_dictionary_learning,
    ),
    Converter(
        name="circuit_tracer",
        says="circuit-tracer transcoder sets: one transcoder for every layer from 0",
        read=read_circuit_tracer,
        write=write_circuit_tracer,
    ),
)

__all__ = ["CONVERTERS", "Converter", "Imported", "ReadOptions", "WriteOptions"]
