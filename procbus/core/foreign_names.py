# SPDX-License-Identifier: MIT
"""The names that other libraries have for an option, and the procbus name of each."""

from __future__ import annotations

from collections.abc import Sequence

#: For each procbus option, its names in `concurrent.futures`, `multiprocessing`, joblib, Celery,
#: dramatiq, huey, mpire, pebble, tenacity and others. One name may stand for several options, but
#: each call has only one of these options.
_NAMES = {
    "cpu_workers": (
        "workers max_workers num_workers n_workers n_jobs num_jobs jobs processes num_processes "
        "n_processes nprocs max_processes pool_size worker_count worker_concurrency parallelism"
    ),
    "io_workers": "threads num_threads n_threads max_threads thread_count thread_workers",
    "max_workers": "workers n_workers num_workers n_jobs jobs processes threads pool_size",
    "worker_init": (
        "initializer init initialiser setup set_up on_start on_worker_start worker_setup "
        "worker_initializer worker_init_fn process_init"
    ),
    "initializer": "worker_init init initialiser worker_initializer",
    "max_events_per_worker": (
        "maxtasksperchild max_tasks_per_child max_tasks_per_worker max_tasks worker_lifespan "
        "worker_max_tasks_per_child max_events"
    ),
    "max_pending": "maxsize max_size queue_size max_queue_size max_queue buffersize capacity",
    "on_full": "overflow on_overflow when_full full_policy",
    "on_failure": (
        "callback error_callback on_error errback error_handler on_exception exception_handler "
        "on_dead_letter failure_callback on_failed"
    ),
    "cpu": "backend pool executor mode start_method mp_context",
    "journal": "persist persistence db database storage durable path",
    "retries": (
        "retry attempts max_retries max_attempts max_tries tries num_retries n_retries retry_count "
        "retry_limit stop_after_attempt"
    ),
    "backoff": "retry_delay retry_wait delay retry_backoff wait default_retry_delay min_backoff",
    "retry_on": "autoretry_for retry_exceptions exceptions retry_for on retry_if throws",
    "timeout": (
        "time_limit timeout_s max_time max_runtime timeout_seconds hard_time_limit task_timeout "
        "soft_time_limit"
    ),
    "max_memory": "memory memory_limit max_mem mem_limit max_rss",
    "concurrency": "max_concurrency limit max_parallel max_running semaphore max_instances",
    "where": "filter predicate condition when if_ only_if match guard",
    "key": "group ordering_key order_by partition_key partition_by lock_key",
    "batch": "batch_size chunksize chunk_size max_batch_size batches",
    "batch_wait": "batch_timeout linger max_batch_wait batch_interval linger_s",
    "kind": "type runs_on lane executor pool",
    "name": "task_name label",
    "once": "one_shot single oneshot",
    "grace": "shutdown_timeout stop_timeout grace_period termination_grace_period",
}

_MEANT: dict[str, list[str]] = {}
for _own, _others in _NAMES.items():
    for _other in _others.split():
        _MEANT.setdefault(_other, []).append(_own)


def meant_by(given: str, known: Sequence[str]) -> str:
    """The procbus option that has this name in another library; "" if `known` has no such option.

    >>> meant_by("n_jobs", ["cpu_workers", "io_workers"])
    'cpu_workers'
    """
    return next((own for own in _MEANT.get(given.lower(), ()) if own in known), "")
