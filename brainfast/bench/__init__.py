"""Time forms of one computation in one process, each with its error beside its time."""

from .readout import ReadoutCase, bench_readout, readout_case
from .table import BenchTable, Row, print_table

__all__ = ["BenchTable", "ReadoutCase", "Row", "bench_readout", "print_table", "readout_case"]
