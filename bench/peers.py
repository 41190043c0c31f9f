"""Everybody whom the questions about peers compare procbus with.

Dask's distributed, Ray and huey are asked where they are installed; the extra `bench` brings the
others.
"""

from __future__ import annotations

from .contenders import CPU_CONTENDERS, Opener, distributed
from .in_process import IN_PROCESS
from .large_contenders import ray

#: They run handlers in processes of their own.
PROCESS_PEERS: dict[str, Opener] = {**CPU_CONTENDERS, "distributed": distributed, "ray": ray}
#: All of them.
PEERS: dict[str, Opener] = {**PROCESS_PEERS, **IN_PROCESS}
#: Number of slow events in a second or so.
SLOW = {"bubus": 300, "distributed": 800, "huey": 4_000, "joblib": 50, "ray": 2_000}
