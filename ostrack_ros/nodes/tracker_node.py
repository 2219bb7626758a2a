"""The lifecycle node `tracker`: topics, services, parameters and transitions around the worker."""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import (
    MutuallyExclusiveCallbackGroup,
    ReentrantCallbackGroup,
)
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.lifecycle import LifecycleNode, LifecycleNodeMixin, LifecycleState
from rclpy.lifecycle.node import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from ostrack_ros.engines.base import Engine, EngineError
from ostrack_ros.msg import InitBox, Track
from ostrack_ros.nodes.camera import CameraError, CameraModel
from ostrack_ros.nodes.convert import (
    ImageReader,
    ReceivedImage,
    box_from_message,
    stamp_from_nanoseconds,
    stamp_to_nanoseconds,
)
from ostrack_ros.nodes.diagnostics import RateMeter, Report, diagnostic_array
from ostrack_ros.nodes.encodings import ConversionError
from ostrack_ros.nodes.endpoints import advertise, best_effort, reliable, subscribe
from ostrack_ros.nodes.engine_loading import LoadEngine, load_engine
from ostrack_ros.nodes.executor import PromptCallbackGroup
from ostrack_ros.nodes.memory import keep_image_buffers
from ostrack_ros.nodes.outputs import Outputs
from ostrack_ros.nodes.parameters import ParameterStore, Settings, declare
from ostrack_ros.nodes.problems import ProblemLog
from ostrack_ros.nodes.spin import run_node
from ostrack_ros.nodes.worker import Refused, Result, TrackingWorker, WorkerSettings
from ostrack_ros.srv import InitTarget
from ostrack_ros.tracking.frame import FrameError
from ostrack_ros.tracking.history import FrameHistory

THREADS = 6
"""A transition, two services that wait for the worker, images, timers, and one to spare."""

SWITCH_SECONDS = 0.0005
_LOADING_NOTICE_SECONDS = 3.0
_GLANCE_SECONDS = 0.2
_CLOSE_SECONDS = 5.0
_AHEAD_SECONDS = 0.1


class TrackerNode(LifecycleNode):
    """See the README for topics, services and parameters.

    `load` makes the engine from the settings; it runs on the worker's thread.
    """

    def __init__(self, load: LoadEngine = load_engine, **node_arguments: Any) -> None:
        # LifecycleNode.__init__ cannot pass a callback group on, and its services must answer
        # while a transition runs.
        Node.__init__(self, "tracker", **node_arguments)
        self._transitions = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=self._transitions)

        self._load = load
        self._store = ParameterStore(declare(self))
        settings = self._store.settings
        self._problems = ProblemLog(self._warn, settings.log_period)
        self._reader = ImageReader()
        self._input_rate = RateMeter()
        self._lifecycle_label = "unconfigured"

        self._worker: TrackingWorker[ReceivedImage] | None = None
        self._engine: Engine | None = None
        self._loading_since: float | None = None
        self._loading_step = ""
        self._load_error = ""
        self._next_track_id = 1
        self._image_topic = self._find_image_topic(settings)
        self._inputs: list[Any] = []

        self._outputs = Outputs(
            self._advertise(Track, "~/track", reliable(10)),
            self._advertise(Image, "~/overlay", best_effort(5)),
            self._advertise(MarkerArray, "~/markers", reliable(10)),
            self._now,
            self._problems.report,
            settings.marker_range,
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # On the wall clock: they must go on when simulated time stands still.
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(
            settings.diagnostics_period,
            self._publish_diagnostics,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=self._wall,
        )
        requests = ReentrantCallbackGroup()
        self.create_service(
            InitTarget, "~/init_target", self._on_init_target, callback_group=requests
        )
        self.create_service(Trigger, "~/stop", self._on_stop, callback_group=requests)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._autostart_timer = (
            self.create_timer(0.0, self._start_by_itself, self._transitions, self._wall)
            if settings.autostart
            else None
        )

    def close(self) -> None:
        """Free the engine and end all threads."""
        self._drop_inputs()
        self._close_worker()
        self._outputs.close()

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("deactivate", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("cleanup", self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("shutdown", self._cleanup)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("error handling", self._cleanup)

    def _guarded(self, name: str, action: Callable[[], bool]) -> TransitionCallbackReturn:
        """rclpy swallows what a transition raises: say it before."""
        try:
            succeeded = action()
        except Exception:
            self.get_logger().error(f"{name} failed:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS if succeeded else TransitionCallbackReturn.FAILURE

    def _start_by_itself(self) -> None:
        assert self._autostart_timer is not None
        self._autostart_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS and self.context.ok():
            self.trigger_activate()

    def _configure(self) -> bool:
        settings = self._store.settings
        self._image_topic = self._find_image_topic(settings)
        self._load_error = self._loading_step = ""
        self._loading_since = time.monotonic()
        self.get_logger().info(f"loading model {settings.model}, backend {settings.backend}")
        worker = self._worker = TrackingWorker(
            partial(self._load, settings, self._on_progress),
            FrameHistory(settings.history_seconds, settings.history_bytes),
            self,
            _worker_settings(settings),
            self._now,
            self._next_track_id,
        )
        try:
            engine = self._wait_until_loaded(worker, self._loading_since)
        finally:
            self._loading_since = None
        if engine is None:
            self._close_worker()
            return False
        self._engine = engine
        self.get_logger().info(f"model {engine.spec.name} ready: {engine.description}")
        self._lifecycle_label = "inactive"
        return True

    def _on_progress(self, fraction: float | None, step: str) -> None:
        if not self.context.ok():
            # Ends a build of minutes, which the process would otherwise wait for.
            raise InterruptedError("the node is shutting down")
        share = "" if fraction is None else f" ({100 * fraction:.0f} %)"
        self._loading_step = f"{step}{share}"

    def _wait_until_loaded(
        self, worker: TrackingWorker[ReceivedImage], since: float
    ) -> Engine | None:
        notice = since + _LOADING_NOTICE_SECONDS
        while self.context.ok():
            wait([worker.ready], timeout=_GLANCE_SECONDS)
            if worker.ready.done():
                break
            if (now := time.monotonic()) >= notice:
                notice = now + _LOADING_NOTICE_SECONDS
                self.get_logger().info(
                    f"still loading after {now - since:.0f} s {self._loading_step}"
                )
        if not self.context.ok():
            # A build that was ended by the shutdown is no failure to tell of.
            return None
        error = worker.ready.exception()
        if error is None:
            return worker.ready.result()
        self._load_error = str(error) or type(error).__name__
        self.get_logger().error(f"cannot load the model: {self._load_error}")
        if not isinstance(error, EngineError):
            self.get_logger().error("".join(traceback.format_exception(error)))
        return None

    def _activate(self) -> bool:
        if self._worker is None:
            return False
        self._worker.activate()
        self._create_inputs(self._store.settings)
        self._lifecycle_label = "active"
        self.get_logger().info(f"waiting for images on {self._image_topic}")
        return True

    def _deactivate(self) -> bool:
        self._drop_inputs()
        if self._worker is not None:
            self._worker.deactivate()
        self._lifecycle_label = "inactive"
        return True

    def _cleanup(self) -> bool:
        self._drop_inputs()
        self._close_worker()
        self._lifecycle_label = "unconfigured"
        return True

    def _close_worker(self) -> None:
        worker, self._worker, self._engine = self._worker, None, None
        if worker is None:
            return
        closed = worker.close(_CLOSE_SECONDS if worker.ready.done() else _GLANCE_SECONDS)
        self._next_track_id = worker.next_track_id
        if closed:
            return
        if self.context.ok():
            self.get_logger().warning("the engine is still busy; it is freed once it returns")
        else:
            # Nothing can interrupt a runtime that builds an engine, and Python would abort the
            # process if it ended with that thread at work.
            atexit.register(os._exit, 0)

    # Inputs.

    def _find_image_topic(self, settings: Settings) -> str:
        topic = self.resolve_topic_name("image")
        if settings.image_transport != "compressed":
            return topic
        # Remapping `image` moves its transports along, as it does in image_transport.
        direct = self.resolve_topic_name("image/compressed")
        unmapped = self.resolve_topic_name("image/compressed", only_expand=True)
        return direct if direct != unmapped else f"{topic}/compressed"

    def _create_inputs(self, settings: Settings) -> None:
        compressed = settings.image_transport == "compressed"
        self._inputs = [
            subscribe(
                self,
                CompressedImage if compressed else Image,
                self._image_topic,
                self._on_image,
                best_effort(1),
                PromptCallbackGroup(),
                self._problems.report,
                "image.qos",
            ),
            subscribe(
                self,
                CameraInfo,
                "camera_info",
                self._on_camera_info,
                best_effort(5),
                MutuallyExclusiveCallbackGroup(),
                self._problems.report,
                "camera_info.qos",
            ),
            subscribe(
                self,
                InitBox,
                "init_box",
                self._on_init_box,
                reliable(1),
                MutuallyExclusiveCallbackGroup(),
                self._problems.report,
                "init.qos",
            ),
        ]

    def _advertise(self, message_type: type, topic: str, qos: QoSProfile) -> Any:
        return advertise(self, message_type, topic, qos, self._problems.report, "output.qos")

    def _drop_inputs(self) -> None:
        inputs, self._inputs = self._inputs, []
        for subscription in inputs:
            self.destroy_subscription(subscription)
        self._outputs.camera = None

    def _on_image(self, message: Image | CompressedImage) -> None:
        worker = self._worker
        if worker is None:
            return
        self._input_rate.tick()
        now = self._now()
        try:
            image = self._reader.read(message, now)
        except ConversionError as error:
            worker.count_unusable()
            self._problems.report("image.unusable", f"image ignored: {error}")
            return
        if not stamp_to_nanoseconds(message.header.stamp):
            self._problems.report(
                "image.unstamped",
                "images carry no stamp: their time of arrival is taken, and latencies and init "
                "boxes with a stamp cannot be right",
            )
        elif image.stamp - now > _AHEAD_SECONDS * 1e9:
            self._problems.report(
                "image.future",
                f"the image's stamp is {(image.stamp - now) / 1e9:.3f} s ahead of this node's "
                "clock; synchronise the clocks or set use_sim_time: latencies are wrong",
            )
        worker.submit(image)

    def _on_camera_info(self, message: CameraInfo) -> None:
        try:
            self._outputs.camera = CameraModel.from_message(message, self._store.settings.rectified)
        except CameraError as error:
            self._outputs.camera = None
            self._problems.report("camera_info.unusable", f"no bearing is given: {error}")

    def _on_init_box(self, message: InitBox) -> None:
        worker = self._worker
        if worker is None:
            return
        answer = worker.init(
            stamp_to_nanoseconds(message.header.stamp), box_from_message(message.box)
        )
        answer.add_done_callback(self._log_started)

    def _on_init_target(
        self, request: InitTarget.Request, response: InitTarget.Response
    ) -> InitTarget.Response:
        worker = self._worker
        response.success = False
        response.track_id = 0
        if worker is None:
            response.message = "the node is not active; configure and activate it first"
            return response
        answer = worker.init(
            stamp_to_nanoseconds(request.header.stamp), box_from_message(request.box)
        )
        answer.add_done_callback(self._log_started)
        patience = self._store.settings.init_wait + _CLOSE_SECONDS
        try:
            started = answer.result(patience)
        except Refused as refused:
            response.message = str(refused)
        except FutureTimeout:
            response.message = f"the tracker did not answer within {patience:g} s"
        else:
            response.success = True
            response.message = started.message
            response.track_id = started.track_id
        return response

    def _log_started(self, answer: Any) -> None:
        if answer.exception() is None and self.context.ok():
            started = answer.result()
            self.get_logger().info(f"track {started.track_id}: {started.message}")

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        worker = self._worker
        if worker is None:
            response.success = False
            response.message = "the node is not active: there is nothing to stop"
            return response
        try:
            stopped = worker.stop().result(_CLOSE_SECONDS)
        except FutureTimeout:
            response.success = False
            response.message = f"the tracker did not answer within {_CLOSE_SECONDS:g} s"
            return response
        response.success = True
        response.message = f"stopped track {stopped}" if stopped else "nothing was being tracked"
        self.get_logger().info(response.message)
        return response

    def _on_parameters(self, parameters: Sequence[Parameter[Any]]) -> SetParametersResult:
        verdict = self._store.change(parameters, configured=self._worker is not None)
        if not verdict.reason:
            settings = verdict.settings
            self._problems.period = settings.log_period
            self._outputs.marker_range = settings.marker_range
            if self._worker is not None:
                self._worker.apply(_worker_settings(settings))
        return verdict.to_message()

    # What the worker says, on its thread.

    def on_result(self, result: Result[ReceivedImage]) -> None:
        self._outputs.publish(result)

    def on_idle_image(self, image: ReceivedImage) -> None:
        try:
            self._outputs.show_idle(image)
        except FrameError as error:
            self._problems.report("image.unusable", f"image ignored: {error}")

    def on_problem(self, kind: str, message: str) -> None:
        self._problems.report(kind, message)

    def on_failure(self, kind: str, error: Exception) -> None:
        if not self.context.ok():
            return
        self._problems.report(kind, f"unexpected {type(error).__name__}: {error}")
        self.get_logger().debug("".join(traceback.format_exception(error)))

    # Diagnostics.

    def _publish_diagnostics(self) -> None:
        worker, engine, since = self._worker, self._engine, self._loading_since
        settings = self._store.settings
        report = Report(
            node=self.get_fully_qualified_name(),
            lifecycle="configuring" if since is not None else self._lifecycle_label,
            topic=self._image_topic,
            engine="" if engine is None else engine.description,
            backend=settings.backend,
            model=settings.model if engine is None else engine.spec.name,
            precision=settings.precision or ("" if engine is None else engine.spec.precision),
            loading_for=None if since is None else time.monotonic() - since,
            loading_step=self._loading_step,
            load_error=self._load_error,
            input_rate=self._input_rate.rate,
            output_rate=self._outputs.rate.rate,
            latencies=self._outputs.latencies,
            converter=self._reader.description,
            problems=self._problems.all(),
            worker=None if worker is None else worker.status(),
        )
        self._diagnostics.publish(diagnostic_array(report, stamp_from_nanoseconds(self._now())))

    def _warn(self, message: str) -> None:
        if self.context.ok():
            self.get_logger().warning(message)

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _worker_settings(settings: Settings) -> WorkerSettings:
    return WorkerSettings(
        settings.tracker,
        settings.image_timeout,
        settings.init_tolerance,
        settings.init_wait,
        settings.catch_up_time,
    )


def main(args: Sequence[str] | None = None, load: LoadEngine = load_engine) -> int:
    """Run the node; the exit code."""
    keep_image_buffers()
    # Python lets a thread keep the interpreter for 5 ms while another one waits, as long as a small
    # network takes for an image.
    sys.setswitchinterval(SWITCH_SECONDS)
    return run_node(lambda: TrackerNode(load), args, THREADS)


if __name__ == "__main__":
    sys.exit(main())
