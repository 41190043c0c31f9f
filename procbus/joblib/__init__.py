# SPDX-License-Identifier: MIT
"""procbus as a backend of joblib, for scikit-learn and all other code that calls `joblib.Parallel`.

Example:
    ```python
    import joblib
    import procbus.joblib

    procbus.joblib.register()
    with joblib.parallel_config(backend="procbus", timeout=60):
        ...
    ```
"""

from __future__ import annotations

__all__ = ["register", "shutdown"]


def register(*, make_default: bool = False) -> None:
    """Make "procbus" a backend of joblib, for `joblib.parallel_config` and `joblib.Parallel`.

    The backend takes these options in `parallel_config`, which are explained at
    `procbus.subscribe`: `timeout`, `max_memory`, `retries`, `backoff`, `retry_on`, `max_crashes`
    and `priority`. Each option holds for a single call. joblib's own options work as with its other
    backends. See docs/joblib.md. `register` is idempotent, and may be called from any thread.

    Args:
        make_default: True makes "procbus" the backend of code that names none.

    Raises:
        ImportError: joblib is not installed: `pip install "procbus[joblib]"`.

    Example:
        ```python
        import joblib
        import procbus.joblib

        procbus.joblib.register()
        with joblib.parallel_config(backend="procbus", n_jobs=2, timeout=60):
            print(joblib.Parallel()(joblib.delayed(abs)(n) for n in range(-3, 0)))
        ```
    """
    from joblib import register_parallel_backend  # only now: workers import this package too

    from procbus.joblib.backend import ProcbusBackend

    register_parallel_backend("procbus", ProcbusBackend, make_default=make_default)


def shutdown() -> None:
    """End the workers that wait for the next `joblib.Parallel`. Idempotent; from any thread.

    Without this call, these workers end with the script. Workers that are at work go on.

    Example:
        ```python
        import procbus.joblib

        procbus.joblib.register()
        procbus.joblib.shutdown()
        ```
    """
    from procbus.joblib.workers import IDLE

    IDLE.close()
