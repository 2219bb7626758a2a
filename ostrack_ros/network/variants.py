"""Named network configurations: the published ones and the smaller ones shipped here."""

from __future__ import annotations

from dataclasses import dataclass

from ostrack_ros.engines.spec import EliminationSchedule

PATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Variant:
    """Everything needed to build a network and to crop its inputs.

    Sizes are pixels of the square inputs, factors are crop sides in units of sqrt(box area),
    `head_channels` is the width of the head's first convolution (256 as published), `mlp_width`
    the hidden width of the blocks' MLPs (4 * `embed_dim`) and `head_dim` the width of one attention
    head (`embed_dim` / `heads`); None stands for the value in brackets, which is the published one.
    """

    name: str
    embed_dim: int
    depth: int
    heads: int
    template_size: int = 128
    search_size: int = 256
    template_factor: float = 2.0
    search_factor: float = 4.0
    elimination: EliminationSchedule | None = None
    head_channels: int = 256
    mlp_width: int | None = None
    head_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("template_size", "search_size"):
            size = getattr(self, name)
            if size <= 0 or size % PATCH_SIZE:
                raise ValueError(f"{name} is {size}, expected a positive multiple of {PATCH_SIZE}")
        if self.head_dim is None and self.embed_dim % self.heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of heads {self.heads}")
        if self.head_channels % 8:
            raise ValueError(f"head_channels is {self.head_channels}, expected a multiple of 8")
        if self.elimination:
            if not 0 < self.elimination.keep_ratio <= 1:
                raise ValueError(f"keep_ratio is {self.elimination.keep_ratio}, expected (0, 1]")
            if any(not 0 <= block < self.depth for block in self.elimination.blocks):
                raise ValueError(
                    f"elimination blocks {self.elimination.blocks} do not fit depth {self.depth}"
                )

    @property
    def attention_width(self) -> int:
        """Of queries, keys and values, all heads together."""
        return self.heads * (self.head_dim or self.embed_dim // self.heads)

    @property
    def template_tokens(self) -> int:
        return (self.template_size // PATCH_SIZE) ** 2

    @property
    def score_size(self) -> int:
        """Side of the search grid and of the score map, in cells."""
        return self.search_size // PATCH_SIZE


def _family(
    prefix: str, embed_dim: int, depth: int, heads: int, elimination_blocks: tuple[int, ...]
) -> dict[str, Variant]:
    """The four published combinations of resolution and candidate elimination."""
    family = {}
    for search_size, search_factor in ((256, 4.0), (384, 5.0)):
        for suffix, blocks in (("", None), ("_ce", elimination_blocks)):
            name = f"{prefix}_{search_size}{suffix}"
            family[name] = Variant(
                name=name,
                embed_dim=embed_dim,
                depth=depth,
                heads=heads,
                template_size=search_size // 2,
                search_size=search_size,
                search_factor=search_factor,
                elimination=EliminationSchedule(blocks, 0.7) if blocks else None,
            )
    return family


VARIANTS: dict[str, Variant] = {
    **_family("vitb", 768, 12, 12, (3, 6, 9)),
    **_family("vitl", 1024, 24, 16, (6, 12, 18)),
    **_family("vits", 384, 12, 6, (3, 6, 9)),
    **_family("vitt", 192, 12, 3, (3, 6, 9)),
    "ostrack_small": Variant(
        "ostrack_small",
        embed_dim=384,
        depth=8,
        heads=6,
        template_factor=1.75,
        search_factor=3.5,
        elimination=EliminationSchedule((3, 5), 0.7),
        head_channels=96,
    ),
    "ostrack_tiny": Variant(
        "ostrack_tiny",
        embed_dim=384,
        depth=8,
        heads=4,
        head_dim=64,
        mlp_width=256,
        search_size=192,
        template_factor=1.75,
        search_factor=2.625,
        elimination=EliminationSchedule((3, 5), 0.7),
        head_channels=64,
    ),
}

# Names of the configuration files with which the authors published checkpoints.
PUBLISHED: dict[str, str] = {
    "vitb_256_mae_32x4_ep300": "vitb_256",
    "vitb_256_mae_ce_32x4_ep300": "vitb_256_ce",
    "vitb_256_mae_ce_32x4_got10k_ep100": "vitb_256_ce",
    "vitb_384_mae_32x4_ep300": "vitb_384",
    "vitb_384_mae_ce_32x4_ep300": "vitb_384_ce",
    "vitb_384_mae_ce_32x4_got10k_ep100": "vitb_384_ce",
}


def get_variant(name: str) -> Variant:
    """The variant of that name, short (`vitb_256_ce`) or as published.

    Raises ValueError listing the known names.
    """
    try:
        return VARIANTS[PUBLISHED.get(name, name)]
    except KeyError:
        known = ", ".join([*VARIANTS, *PUBLISHED])
        raise ValueError(f"unknown variant {name!r}; known are: {known}") from None
