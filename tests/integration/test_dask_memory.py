"""Limits of memory on a Dask cluster: the same tests as on one machine."""

from __future__ import annotations

import pytest

from procbus import DaskPool, EventBus
from tests.integration import test_dask as on_dask
from tests.integration import test_memory_limits as on_one_machine

pytestmark = on_dask.pytestmark
address = on_dask.address


@pytest.fixture
def make_bus(address: str) -> on_one_machine.MakeBus:
    return lambda workers: EventBus([], cpu=DaskPool(address), cpu_workers=workers)


bus = on_one_machine.bus

test_a_handler_that_leaks_is_stopped = on_one_machine.test_a_handler_that_leaks_is_stopped
test_memory_of_processes_started_by_a_handler_counts = (
    on_one_machine.test_memory_of_processes_started_by_a_handler_counts
)
test_processes_that_stay_below_the_limit_together_are_left_alone = (
    on_one_machine.test_processes_that_stay_below_the_limit_together_are_left_alone
)
test_memory_shared_by_forked_processes_counts_once = (
    on_one_machine.test_memory_shared_by_forked_processes_counts_once
)
test_processes_that_others_left_behind_are_not_charged_to_a_handler = (
    on_one_machine.test_processes_that_others_left_behind_are_not_charged_to_a_handler
)
test_handler_that_frees_its_memory_is_left_alone = (
    on_one_machine.test_handler_that_frees_its_memory_is_left_alone
)
test_handler_after_a_leak_in_the_same_worker_is_not_charged = (
    on_one_machine.test_handler_after_a_leak_in_the_same_worker_is_not_charged
)
test_small_leaks_of_quick_handlers_are_charged_to_none = (
    on_one_machine.test_small_leaks_of_quick_handlers_are_charged_to_none
)
test_deliveries_left_to_another_worker_run_once = (
    on_one_machine.test_deliveries_left_to_another_worker_run_once
)
