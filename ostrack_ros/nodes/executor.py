"""An executor that hands images over on the spinning thread and runs the rest in a pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.context import Context
from rclpy.executors import (
    Executor,
    ExternalShutdownException,
    ShutdownException,
    TimeoutException,
)

_YIELD_SECONDS = 0.001
"""Preparing the next wait keeps the interpreter busy for half a millisecond: whoever was woken by
a prompt callback shall have it first."""


class PromptCallbackGroup(MutuallyExclusiveCallbackGroup):
    """For callbacks that return at once: they are not worth another thread's wake-up."""


class PromptExecutor(Executor):
    """Like MultiThreadedExecutor, but callbacks of a PromptCallbackGroup skip the pool.

    A slow transition or service so holds nothing up, and an image gets to its callback without a
    change of threads. `on_error` receives what a callback raised; the executor goes on.
    """

    def __init__(
        self, threads: int, on_error: Callable[[Exception], None], context: Context | None = None
    ) -> None:
        super().__init__(context=context)
        self._on_error = on_error
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="callback")

    def spin_once(self, timeout_sec: float | None = None) -> None:
        try:
            handler, entity, _ = self.wait_for_ready_callbacks(timeout_sec=timeout_sec)
        except (ShutdownException, TimeoutException, ExternalShutdownException):
            return
        if isinstance(getattr(entity, "callback_group", None), PromptCallbackGroup):
            self._run(handler)
            time.sleep(_YIELD_SECONDS)
        else:
            self._pool.submit(self._run, handler)

    def _run(self, handler: Any) -> None:
        handler()
        if not handler.done():  # Another thread of the pool has it.
            return
        error = handler.exception()
        if error is not None:
            self._on_error(error)
