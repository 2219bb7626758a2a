"""A wide network made narrow: its most useful parts stay, and what follows them is fitted anew.

Attention loses heads, MLPs lose hidden units and the box head loses channels. The layer after what
was cut is fitted by ridge regression to what it gave before (He et al., "Channel Pruning for
Accelerating Very Deep Neural Networks", ICCV 2017), block after block, each on what the narrowed
blocks before it give. Heads go one by one, each time the one whose going costs least; of units and
channels those stay whose variance times squared outgoing weights is largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostrack_ros.network.head import CenterHead
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import Variant
from ostrack_ros.network.vit import Attention, Block, Mlp
from ostrack_ros.training.errors import TrainingError
from ostrack_ros.training.state import below

BLOCKS = "backbone.blocks."
HEAD = "box_head."
FITTED_SAMPLES = 30_000
RIDGE = 1e-3

State = dict[str, Tensor]


def is_wider(weights: State, variant: Variant, network: OSTrack) -> bool:
    """Whether `weights`, of a network of `variant`, have wider blocks or a wider box head than
    `network`. Networks whose tokens are of another width are none that could be cut: False.

    Raises TrainingError where attention would have to lose heads of another width than the
    network's.
    """
    own, target = network.state_dict(), network.variant
    if variant.embed_dim != target.embed_dim:
        return False
    given, wanted = (v.attention_width // v.heads for v in (variant, target))
    if variant.attention_width > target.attention_width and given != wanted:
        raise TrainingError(
            f"{variant.name} has attention heads of width {given}, {target.name} of {wanted}: "
            "heads can be left out, not made narrower"
        )
    return any(
        value.ndim > 1 and key.startswith((BLOCKS, HEAD)) and value.numel() > own[key].numel()
        for key, value in weights.items()
        if key in own
    )


@torch.no_grad()
def narrow_network(
    network: OSTrack, weights: State, inputs: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Give `network` the blocks and the box head of the wider `weights`, cut to its own widths.

    Everything that `weights` has in the same shape must have been copied already; what they do not
    have, or narrower, stays as it is. All on the CPU. `inputs` are normalised templates and search
    regions [B, 3, H, W] like those it will see, some 300 in all. Returns, by the name of each layer
    fitted anew, the share of its output's variance that it misses.
    """
    network.eval()
    missed: dict[str, float] = {}
    tokens = [network.backbone.embed(template, search) for template, search in inputs]
    for index, block in enumerate(network.backbone.blocks):
        assert isinstance(block, Block)
        prefix = f"{BLOCKS}{index}."
        seen = [block.norm1(x) for x in tokens]
        wide = below(weights, f"{prefix}attn.")
        if _exceeds(wide, "proj.weight", block.attn.proj):
            missed[f"{prefix}attn.proj"] = _narrow_attention(block.attn, wide, seen)
        tokens = [x + block.attn(normed)[0] for x, normed in zip(tokens, seen, strict=True)]
        seen = [block.norm2(x) for x in tokens]
        wide = below(weights, f"{prefix}mlp.")
        if _exceeds(wide, "fc2.weight", block.mlp.fc2):
            missed[f"{prefix}mlp.fc2"] = _narrow_mlp(block.mlp, wide, seen)
        tokens = [x + block.mlp(normed) for x, normed in zip(tokens, seen, strict=True)]
    wide = below(weights, HEAD)
    if _exceeds(wide, "conv5_ctr.weight", network.box_head.get_submodule("conv5_ctr")):
        features = [network.backbone(template, search).search for template, search in inputs]
        side = math.isqrt(features[0].shape[1])
        tokens_last = torch.cat(features).transpose(1, 2)
        grids = tokens_last.reshape(*tokens_last.shape[:2], side, side)
        for tower, _ in CenterHead.TOWERS:
            found = _narrow_tower(network.box_head, tower, wide, grids)
            missed |= {f"{HEAD}{name}": share for name, share in found.items()}
    return missed


class _Regression:
    """A linear layer, output = weight @ input, to be replaced by one that gets fewer inputs.

    `inputs` [N, K], `weight` [O, K]. Everything follows from the inputs' second moments.
    """

    def __init__(self, inputs: Tensor, weight: Tensor) -> None:
        inputs = _sample(inputs)
        design = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1).double()
        self._gram = design.T @ design / len(design)
        # With a last row for the constant, which the layer's own bias holds.
        self._exact = torch.cat([weight.T, torch.zeros_like(weight.T[:1])]).double()

    def fit(self, kept: Tensor) -> tuple[Tensor, Tensor, float]:
        """For the inputs `kept` [k]: weight [O, k], what to add to the bias [O], and the share of
        the output's variance that this misses."""
        gram, exact = self._gram, self._exact
        columns = torch.cat([kept, kept.new_tensor([len(gram) - 1])])
        inner = gram[columns][:, columns]
        # The ridge pulls towards the weights as they were, not towards zero.
        ridge = RIDGE * inner.diagonal().mean()
        identity = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
        solution = torch.linalg.solve(
            inner + ridge * identity, gram[columns] @ exact + ridge * exact[columns]
        )
        error = -exact
        error[columns] += solution
        mean = gram[-1] @ exact
        variance = (exact * (gram @ exact)).sum() - mean.square().sum()
        missed = float((error * (gram @ error)).sum() / variance.clamp_min(1e-30))
        return solution[:-1].T.float(), solution[-1].float(), missed


def _narrow_attention(own: Attention, wide: State, seen: list[Tensor]) -> float:
    size, dim = own.head_dim, own.qkv.in_features
    count = wide["proj.weight"].shape[1] // size
    mixed = []
    for x in seen:
        qkv = F.linear(x, wide["qkv.weight"], wide["qkv.bias"])
        parts = qkv.reshape(*x.shape[:2], 3, count, size).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        mixed.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
    regression = _Regression(torch.cat(mixed), wide["proj.weight"])
    heads = list(range(count))
    while len(heads) > own.heads:
        fits = {
            head: regression.fit(_columns([h for h in heads if h != head], size)) for head in heads
        }
        heads.remove(min(fits, key=lambda head: fits[head][2]))
    kept = _columns(heads, size)
    weight, shift, missed = regression.fit(kept)
    own.qkv.weight.copy_(wide["qkv.weight"].view(3, -1, dim)[:, kept].flatten(0, 1))
    own.qkv.bias.copy_(wide["qkv.bias"].view(3, -1)[:, kept].flatten())
    own.proj.weight.copy_(weight)
    own.proj.bias.copy_(wide["proj.bias"] + shift)
    return missed


def _narrow_mlp(own: Mlp, wide: State, seen: list[Tensor]) -> float:
    tokens = _sample(torch.cat([x.flatten(0, 1) for x in seen]))
    hidden = F.gelu(F.linear(tokens, wide["fc1.weight"], wide["fc1.bias"]))
    kept = _most_useful(hidden, wide["fc2.weight"].square().sum(0), own.fc1.out_features)
    weight, shift, missed = _Regression(hidden, wide["fc2.weight"]).fit(kept)
    own.fc1.weight.copy_(wide["fc1.weight"][kept])
    own.fc1.bias.copy_(wide["fc1.bias"][kept])
    own.fc2.weight.copy_(weight)
    own.fc2.bias.copy_(wide["fc2.bias"] + shift)
    return missed


def _narrow_tower(own: CenterHead, tower: str, wide: State, x: Tensor) -> dict[str, float]:
    """`x` [B, C, S, S]: what the head sees. All layers are fitted on what the wide tower's layers
    before them give."""
    missed: dict[str, float] = {}
    kept = torch.arange(x.shape[1])
    for layer in range(1, 5):
        name = f"conv{layer}_{tower}"
        conv, norm = own.get_submodule(name)[0], own.get_submodule(name)[1]  # type: ignore[index]
        state, following = below(wide, f"{name}."), below(wide, f"conv{layer + 1}_{tower}.")
        outgoing = following["0.weight" if layer < 4 else "weight"].square().sum((0, 2, 3))
        patches = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
        before = F.conv2d(x, state["0.weight"], state["0.bias"], padding=1)
        x = F.relu(
            F.batch_norm(
                before,
                state["1.running_mean"],
                state["1.running_var"],
                state["1.weight"],
                state["1.bias"],
                eps=norm.eps,
            )
        )
        leaving = _most_useful(x.movedim(1, -1).flatten(0, 2), outgoing, norm.num_features)
        weight, shift = state["0.weight"][leaving], torch.zeros(len(leaving))
        if len(kept) < weight.shape[1]:
            flat, shift, share = _Regression(patches, weight.flatten(1)).fit(_columns(kept, 9))
            weight, missed[name] = flat.view(len(leaving), len(kept), 3, 3), share
        conv.weight.copy_(weight)
        conv.bias.copy_(state["0.bias"][leaving] + shift)
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, part).copy_(state[f"1.{part}"][leaving])
        kept = leaving
    name = f"conv5_{tower}"
    last, state = own.get_submodule(name), below(wide, f"{name}.")
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    inputs = x.movedim(1, -1).flatten(0, 2)
    flat, shift, missed[name] = _Regression(inputs, state["weight"].flatten(1)).fit(kept)
    last.weight.copy_(flat[:, :, None, None])
    last.bias.copy_(state["bias"] + shift)
    return missed


def _sample(rows: Tensor) -> Tensor:
    """At most FITTED_SAMPLES of the rows [N, K], evenly spaced."""
    return rows[:: -(-len(rows) // FITTED_SAMPLES)]


def _most_useful(activations: Tensor, outgoing: Tensor, count: int) -> Tensor:
    """The `count` columns of `activations` [N, K] to keep, in order."""
    use = activations.var(0) * outgoing
    return use.topk(min(count, len(use))).indices.sort().values


def _columns(groups: Sequence[int] | Tensor, size: int) -> Tensor:
    """Columns of the groups of `size` columns each."""
    return (torch.as_tensor(groups)[:, None] * size + torch.arange(size)).flatten()


def _exceeds(wide: State, name: str, own: nn.Module) -> bool:
    """Whether the tensor `name` has more inputs than the layer `own`."""
    assert isinstance(own, nn.Linear | nn.Conv2d)
    return name in wide and wide[name].shape[1] > own.weight.shape[1]
