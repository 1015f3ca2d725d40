"""Gaussian noise that belongs to a sample's position, not to a generator, a device or a micro-batch."""

import math

import torch

from pipeline.counter import make_key, philox

_UNIT = 2.0**-24


def normal(
    positions: torch.Tensor, count: int, *, seed: int, stream: str, device: torch.device | str | None = None
) -> torch.Tensor:
    """Standard normals [B, count], float32, a pure function of (seed, stream, position, element).

    `positions` is int64 [B]; the draws are made on `device` (default: that of `positions`). The Philox words are
    equal on every device; the normals made of them (Box and Muller 1958) are equal up to float rounding, which is
    why |x| never exceeds 5.77.
    """
    positions = positions.to(device)[:, None]
    block = torch.arange((count + 3) // 4, dtype=torch.int64, device=positions.device)[None, :]
    counter = (
        (positions & 0xFFFFFFFF).expand(-1, block.shape[1]),
        positions >> 32,
        block,
        torch.zeros_like(block),
    )
    words = philox(counter, make_key("noise", stream, seed))
    # 24 bits are what a float32 holds exactly; the radius wants (0, 1], the angle [0, 1).
    a, b, c, d = ((word >> 8).to(torch.float32) for word in words)
    draws = []
    for radius_bits, angle_bits in ((a, b), (c, d)):
        radius = torch.sqrt(-2 * torch.log((radius_bits + 1) * _UNIT))
        angle = angle_bits * (2 * math.pi * _UNIT)
        draws += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(draws, dim=-1).flatten(1)[:, :count]
