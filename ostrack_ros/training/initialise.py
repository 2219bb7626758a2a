"""Starting points for training: a DINOv2 backbone, or a network trained here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import PATCH_SIZE, Variant
from ostrack_ros.training.errors import TrainingError


@torch.no_grad()
def initialise_from_dinov2(network: OSTrack, path: Path) -> None:
    """Copy the first blocks of a DINOv2 ViT (an .npz with Hugging Face's key names).

    The patch kernel is resampled to 16 px and the position grid to each input's grid; LayerScale
    is folded into the layers it follows. Raises TrainingError when the file cannot be opened, the
    widths differ or it has too few blocks.
    """
    try:
        archive = np.load(path, allow_pickle=False)
    except OSError as error:
        raise TrainingError(
            f"cannot read {path}: {error.strerror}; `python -m ostrack_ros.training.dinov2 {path}` "
            "fetches a DINOv2 ViT-S"
        ) from error
    with archive:
        source = {key: torch.from_numpy(archive[key].astype(np.float32)) for key in archive.files}
    backbone, variant = network.backbone, network.variant
    width = source["layernorm.weight"].shape[0]
    depth = len({key.split(".")[2] for key in source if key.startswith("encoder.layer.")})
    if width != variant.embed_dim or depth < variant.depth:
        raise TrainingError(
            f"{path} has {depth} blocks of width {width}, variant {variant.name} needs "
            f"{variant.depth} of width {variant.embed_dim}"
        )
    kernel = source["embeddings.patch_embeddings.projection.weight"]
    backbone.patch_embed.proj.weight.copy_(_resample_kernel(kernel))
    bias = backbone.patch_embed.proj.bias
    assert bias is not None
    bias.copy_(source["embeddings.patch_embeddings.projection.bias"])
    grid = source["embeddings.position_embeddings"][:, 1:]
    for parameter in (backbone.pos_embed_z, backbone.pos_embed_x):
        parameter.copy_(_resample_positions(grid, parameter.shape[1]))
    backbone.norm.weight.copy_(source["layernorm.weight"])
    backbone.norm.bias.copy_(source["layernorm.bias"])
    for index in range(variant.depth):
        block = {
            key.split(".", 3)[3]: value
            for key, value in source.items()
            if key.startswith(f"encoder.layer.{index}.")
        }
        backbone.blocks[index].load_state_dict(_convert_block(block))


def initialise_from_network(network: OSTrack, source: dict[str, Tensor], variant: Variant) -> int:
    """Copy what fits of `source`, weights of a network of `variant`, adapted to this network's
    inputs (`adapt_weights`); returns how many tensors that are.

    What is wider there than in the network is left to `training.pruning`, which needs pairs.
    """
    return copy_fitting(network, adapt_weights(source, variant, network.variant))


@torch.no_grad()
def copy_fitting(network: OSTrack, weights: dict[str, Tensor]) -> int:
    """Copy every tensor of `weights` that has a namesake of the same shape; returns how many."""
    own = network.state_dict()
    fitting = {
        key: value for key, value in weights.items() if key in own and own[key].shape == value.shape
    }
    own.update(fitting)
    network.load_state_dict(own)
    return len(fitting)


def adapt_weights(
    source: dict[str, Tensor], variant: Variant, target: Variant
) -> dict[str, Tensor]:
    """`source`, weights of a network of `variant`, for the inputs of `target`: positions are
    resampled where the input sizes or the regions they span differ, and sizes are measured by the
    other search region."""
    shares = {
        "backbone.pos_embed_z": target.template_factor / variant.template_factor,
        "backbone.pos_embed_x": target.search_factor / variant.search_factor,
    }
    tokens = {
        "backbone.pos_embed_z": target.template_tokens,
        "backbone.pos_embed_x": target.score_size**2,
    }
    positions = {
        key: _resample_positions(source[key], tokens[key], share)
        for key, share in shares.items()
        if key in source
    }
    return source | positions | _rescaled_sizes(source, shares["backbone.pos_embed_x"])


def pick_blocks(
    source: dict[str, Tensor], blocks: Sequence[int], variant: Variant
) -> dict[str, Tensor]:
    """`source`, weights of a network of `variant`, with its blocks renumbered: the first of
    `blocks` becomes block 0, and those not among them are gone. Without `blocks` as it is.

    Raises TrainingError for a block that the source does not have.
    """
    for block in blocks:
        if not 0 <= block < variant.depth:
            raise TrainingError(f"block {block} does not exist: {variant.name} has {variant.depth}")
    if not blocks:
        return source
    prefix = "backbone.blocks."
    picked = {key: value for key, value in source.items() if not key.startswith(prefix)}
    for new, old in enumerate(blocks):
        for key, value in source.items():
            if key.startswith(f"{prefix}{old}."):
                picked[key.replace(f"{prefix}{old}.", f"{prefix}{new}.", 1)] = value
    return picked


@torch.no_grad()
def settle_norms(network: OSTrack, inputs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give batch norms that change nothing (see `network.restoring`) what they see on `inputs`,
    pairs of normalised templates and search regions [B, 3, H, W].

    Afterwards they still change nothing when evaluating, and hardly anything when training, where
    they normalise by the batch at hand. Frozen ones are left alone.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad
    ]
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda module, args: seen[module].append(_moments(args[0])))
        for norm in norms
    ]
    training = network.training
    network.eval()
    for template, search in inputs:
        network(template, search)
    network.train(training)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        mean, square = torch.stack(seen[norm]).mean(0)
        variance = (square - mean**2).clamp_min(0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)


def _moments(values: Tensor) -> Tensor:
    """Mean and mean square of every channel: [2, C]."""
    values = values.double()
    return torch.stack([values.mean((0, 2, 3)), (values**2).mean((0, 2, 3))])


def _convert_block(block: dict[str, Tensor]) -> dict[str, Tensor]:
    attention = "attention.attention"
    scale1, scale2 = block["layer_scale1.lambda1"], block["layer_scale2.lambda1"]
    names = ("query", "key", "value")
    return {
        "norm1.weight": block["norm1.weight"],
        "norm1.bias": block["norm1.bias"],
        "attn.qkv.weight": torch.cat([block[f"{attention}.{n}.weight"] for n in names]),
        "attn.qkv.bias": torch.cat([block[f"{attention}.{n}.bias"] for n in names]),
        "attn.proj.weight": block["attention.output.dense.weight"] * scale1[:, None],
        "attn.proj.bias": block["attention.output.dense.bias"] * scale1,
        "norm2.weight": block["norm2.weight"],
        "norm2.bias": block["norm2.bias"],
        "mlp.fc1.weight": block["mlp.fc1.weight"],
        "mlp.fc1.bias": block["mlp.fc1.bias"],
        "mlp.fc2.weight": block["mlp.fc2.weight"] * scale2[:, None],
        "mlp.fc2.bias": block["mlp.fc2.bias"] * scale2,
    }


def _resample_kernel(kernel: Tensor) -> Tensor:
    """To PATCH_SIZE, keeping the response to a constant patch."""
    side = kernel.shape[-1]
    resized = F.interpolate(kernel, (PATCH_SIZE, PATCH_SIZE), mode="bicubic", align_corners=False)
    return resized * (side / PATCH_SIZE) ** 2


def _rescaled_sizes(source: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The last layer of the size tower for a search region of `share` times the side, on which
    every target is 1 / share times as large.

    sigmoid(a z + b) = sigmoid(z) / share has no exact solution; a and b are fitted to boxes of 5 to
    60 % of the new region's side, for which the error is below 0.02 at a share of 0.75.
    """
    weight, bias = (f"box_head.conv5_size.{part}" for part in ("weight", "bias"))
    if share == 1 or weight not in source:
        return {}
    sizes = torch.linspace(0.05, 0.6, 100, dtype=torch.float64)
    before = torch.logit((sizes * share).clamp_max(0.99))
    slope = torch.stack([before, torch.ones_like(before)], dim=1)
    a, b = torch.linalg.lstsq(slope, torch.logit(sizes)[:, None]).solution.flatten().tolist()
    return {weight: source[weight] * a, bias: source[bias] * a + b}


def _resample_positions(grid: Tensor, tokens: int, share: float = 1.0) -> Tensor:
    """A square grid [1, N, C] to `tokens` positions that span the middle `share` of its side."""
    old, new = round(grid.shape[1] ** 0.5), round(tokens**0.5)
    image = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    middles = ((torch.arange(new) + 0.5) / new * 2 - 1) * share
    places = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1)[None]
    resized = F.grid_sample(
        image, places, mode="bicubic", padding_mode="border", align_corners=False
    )
    return resized.permute(0, 2, 3, 1).reshape(1, tokens, -1)
