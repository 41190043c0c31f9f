# SPDX-License-Identifier: MIT
"""Workers that loky owns: one single-worker executor each, and a private pipe.

loky starts the process, watches it and ends it. What it runs there is one long task, the worker's
loop.
"""

from __future__ import annotations

from collections.abc import Callable

from procbus.context import ONLY_RUN, Run
from procbus.cores import usable_cores
from procbus.errors import ProcbusError
from procbus.pool.blocks import EventMemory
from procbus.pool.definitions import Definitions
from procbus.pool.launching import check_may_launch, thread_caps
from procbus.pool.loky_worker import LokyWorker
from procbus.pool.script import PathSince
from procbus.pool.seam import BATCH_S, NO_WORDS, WorkerGone
from procbus.stats import SharedMemoryStats


class LokyPool:
    """Workers in processes of this machine.

    Args:
        workers: how many the lane will start; they share the cores for BLAS and OpenMP threads.
        init: the user's set-up of each worker, pickled; empty for none.
        memory: shared with the workers, for what is large.
        run: of the bus, for `current()` in workers.
        keeps_on: whether SIGTERM means nothing to the workers.
        nice: how much nicer than this process workers are.
    """

    elastic, local, waits_for, batch_s = False, True, "", BATCH_S

    def __init__(
        self,
        workers: int | None = None,
        init: bytes = b"",
        memory: EventMemory | None = None,
        run: Run = ONLY_RUN,
        keeps_on: bool = False,
        nice: int = 0,
    ) -> None:
        self.keeps_on = keeps_on
        self.run = run
        self.nice = nice
        cores = usable_cores()
        self.workers = workers or cores
        self.environment = thread_caps(cores, self.workers)
        self.init = init
        self.definitions = Definitions(PathSince().complete)
        self.memory = EventMemory() if memory is None else memory

    def close(self) -> None:
        """Let go of the shared memory. Idempotent."""
        self.memory.close()

    def shared_memory(self) -> SharedMemoryStats:
        """What is large, on its way to workers and back."""
        return self.memory.stats()

    def size(self) -> int:
        """The cores that this process may use (affinity and cgroup quotas count)."""
        return self.workers

    def start(self, launched: Callable[[LokyWorker], None]) -> LokyWorker:
        """Start a worker process and wait until it is ready."""
        try:
            check_may_launch()
            return LokyWorker(self, launched)
        except (OSError, ProcbusError) as error:  # no more file descriptors, for one
            raise WorkerGone(None, None, NO_WORDS, hopeless=True) from error
