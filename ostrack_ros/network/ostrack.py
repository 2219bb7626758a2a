"""The whole network, and the graph that engines run."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ostrack_ros.engines.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Precision
from ostrack_ros.network.elimination import kept_mask
from ostrack_ros.network.head import CenterHead, Maps, decode, hann_window
from ostrack_ros.network.variants import Variant
from ostrack_ros.network.vit import Features, VisionTransformer


@dataclass(frozen=True, slots=True)
class Output:
    """Maps of the head and what the backbone eliminated (see `vit.Features.removed`)."""

    maps: Maps
    removed: tuple[Tensor, ...]


class OSTrack(nn.Module):
    """Backbone and head, with the published checkpoints' parameter names."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.backbone = VisionTransformer(variant)
        self.box_head = CenterHead(variant.embed_dim, variant.head_channels)

    def forward(self, template: Tensor, search: Tensor, keep_ratio: float | None = None) -> Output:
        """Normalised RGB `template` [B, 3, Z, Z] and `search` [B, 3, X, X]; see
        `VisionTransformer.forward` for `keep_ratio`."""
        return self.predict(self.backbone(template, search, keep_ratio))

    def predict(self, features: Features) -> Output:
        """The head's maps of the backbone's features."""
        tokens = features.search
        side = math.isqrt(tokens.shape[1])
        grid = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)
        maps: Maps = self.box_head(grid)
        if side != self.variant.score_size:
            # The head measures boxes by the whole search region, of which this is the middle.
            maps = replace(maps, size=maps.size * (self.variant.score_size / side))
        return Output(maps, features.removed)


class OSTrackGraph(nn.Module):
    """The exported graph: uint8 images in, one decoded box out (docs/graph.md)."""

    def __init__(self, network: OSTrack, precision: Precision) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval()
        self.precision = precision
        self.register_buffer("window", hann_window(network.variant.score_size))
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        if precision == "fp16":
            _absorb_normalisation(network)
            network.half()
            for tower, _ in CenterHead.TOWERS:
                network.box_head.get_submodule(f"conv5_{tower}").float()
        self.network = network

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB [B, Z, Z, 3] and [B, X, X, 3] -> `result` float32 [B, 6] (see `decode`) and
        `score_map` float32 [B, S, S], before the window."""
        result, score_map, _ = self.watched(template, search)
        return result, score_map

    def watched(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `forward`, and which candidates were kept: float32 [B, S, S], 1 or 0; None for a
        network without candidate elimination."""
        output: Output = self.network(self._prepare(template), self._prepare(search))
        score_map = output.maps.score[:, 0]
        kept = None
        if output.removed:
            side = score_map.shape[-1]
            kept = kept_mask(output.removed, side * side).reshape(-1, side, side)
        return decode(output.maps, self.window), score_map, kept  # type: ignore[arg-type]

    def _prepare(self, image: Tensor) -> Tensor:
        # The cast comes first: TensorRT lets nothing else touch an uint8 input.
        if self.precision == "fp16":
            return (image.half().permute(0, 3, 1, 2) - 128) * 2**-7
        return (image.float().permute(0, 3, 1, 2) - self.mean) / self.std  # type: ignore[operator]


def describe_network(
    network: OSTrack,
    precision: Precision,
    *,
    name: str,
    licence: str = "",
    source_checkpoint: str = "",
    source_sha256: str = "",
    onnx_sha256: str = "",
    batch: int = 1,
) -> ModelSpec:
    """The sidecar of a network's graph, with what is known of where it comes from."""
    variant = network.variant
    return ModelSpec(
        name=name,
        variant=variant.name,
        template_size=variant.template_size,
        search_size=variant.search_size,
        template_factor=variant.template_factor,
        search_factor=variant.search_factor,
        score_size=variant.score_size,
        precision=precision,
        elimination=variant.elimination,
        parameters=sum(p.numel() for p in network.parameters()),
        licence=licence,
        source_checkpoint=source_checkpoint,
        source_sha256=source_sha256,
        onnx_sha256=onnx_sha256,
        batch=batch,
    )


@torch.no_grad()
def _absorb_normalisation(network: OSTrack) -> None:
    """Make the patch embedding expect (u8 - 128) / 128 instead of ImageNet-normalised values.

    In fp16 this input is exact, and the rescaled weights stay far from subnormals, which dividing
    them by 255 would not.
    """
    projection = network.backbone.patch_embed.proj
    slope, offset = fp16_normalisation()
    weight = projection.weight.double()
    bias = projection.bias
    assert bias is not None
    bias.copy_((bias.double() + (weight * offset).sum(dim=(1, 2, 3))).float())
    projection.weight.copy_((weight * slope).float())


def fp16_normalisation() -> tuple[Tensor, Tensor]:
    """Slope and offset, float64 [1, 3, 1, 1]: the normalised value of an input x = (u8 - 128) / 128
    of an fp16 graph is slope * x + offset."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
    return 128 / 255 / std, (128 / 255 - mean) / std
