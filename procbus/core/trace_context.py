# SPDX-License-Identifier: MIT
"""The context of a trace on its way to a handler: `procbus.otel` gives it to each delivery.

A context of OpenTelemetry holds live spans, which cannot be pickled. Its pickled form is the W3C's
headers. In a worker the headers become a context again, if OpenTelemetry is installed there; if
not, the handler runs without a context of OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from typing import Any

from procbus.core.carry import Translated


class TraceContext(dict[str, object]):
    """A context of OpenTelemetry that can be pickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[dict[str, str]]]:
        """Take along the trace and the baggage."""
        headers: dict[str, str] = {}
        for propagator in _propagators():
            propagator.inject(headers, self)
        return _arrive, (headers,)


#: The context of the trace for the handlers of the event that is being published.
departing: ContextVar[TraceContext] = ContextVar("procbus_trace")


class CurrentTrace(Translated):
    """Makes the context in `departing` the handler's current context of OpenTelemetry."""

    def __init__(self) -> None:
        super().__init__(departing, _variable_here())

    def __reduce__(self) -> tuple[Callable[..., object], tuple[()]]:
        """Become the variable of OpenTelemetry in the worker."""
        return _variable_here, ()


def _arrive(headers: Mapping[str, str]) -> object:
    """Make a context of OpenTelemetry from headers; an empty one if it is not installed."""
    context: Any = {}
    try:
        for propagator in _propagators():
            context = propagator.extract(headers, context)
    except ImportError:
        pass
    return context


def _variable_here() -> ContextVar[Any]:
    """The variable with the current context of OpenTelemetry; if there is none, a new variable."""
    try:
        from opentelemetry.context import attach, get_current
    except ImportError:
        return ContextVar("procbus_no_trace")
    probe = Context()
    probe.run(lambda: attach(get_current()))
    return next(iter(probe), ContextVar("procbus_no_trace"))


def _propagators() -> list[Any]:
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return [TraceContextTextMapPropagator(), W3CBaggagePropagator()]
