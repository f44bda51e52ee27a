"""The workloads, by name. One file each kind; a new one is added to the list below."""

from __future__ import annotations

from benchmarks.workload import Workload
from benchmarks.workloads import big_read, listing, mounting, partial_write, programs, random_read, reread, small_files, write

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for module in (mounting, big_read, random_read, reread, write, partial_write, small_files, listing, programs)
    for workload in module.WORKLOADS
}
