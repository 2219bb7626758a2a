"""Validation by really tracking: the network under training as an engine."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ostrack_ros.engines.base import EngineError, Prediction
from ostrack_ros.engines.spec import ModelSpec
from ostrack_ros.evaluation.datasets import Dataset
from ostrack_ros.evaluation.metrics import Protocol
from ostrack_ros.evaluation.ostrack import ostrack_factory
from ostrack_ros.evaluation.report import Report
from ostrack_ros.evaluation.runner import evaluate_tracker
from ostrack_ros.network.ostrack import OSTrack, OSTrackGraph, describe_network


class TorchEngine:
    """An Engine (engines/base.py) that runs a torch network as it is, in fp32 on the CPU."""

    def __init__(self, network: OSTrack) -> None:
        self._graph: OSTrackGraph | None = OSTrackGraph(network.cpu(), "fp32").eval()
        self._spec = describe_network(network, "fp32", name=network.variant.name)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def description(self) -> str:
        return f"torch {torch.__version__} (fp32, {torch.get_num_threads()} threads)"

    @torch.inference_mode()
    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        if self._graph is None:
            raise EngineError("the torch engine was closed; make a new one")
        result, score_map = self._graph(
            torch.from_numpy(template)[None], torch.from_numpy(search)[None]
        )
        return Prediction.from_outputs(result[0].numpy(), score_map[0].numpy())

    def close(self) -> None:
        self._graph = None


def validate(network: OSTrack, dataset: Dataset) -> Report:
    """Track every sequence (OTB protocol, plain tracker) with `network`."""
    return evaluate_tracker(
        ostrack_factory(TorchEngine(network)), dataset, Protocol.OTB, name=network.variant.name
    )
