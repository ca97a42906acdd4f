"""The five solids as signed distance functions, and marching rays to them.

Distances are exact for the rounded solids, so that a ray may always advance by the distance (sphere tracing, Hart
1996). Local coordinates: the solid stands on the floor upright, in units of its radius, its origin HEIGHTS above the
floor.
"""

import torch
from torch import Tensor

# In the order of SHAPES: how high the origin is, and the radius of a ball around the origin that holds the solid.
HEIGHTS = (1.0, 0.82, 0.90, 0.95, 0.98)
BOUNDS = (1.0, 1.43, 1.20, 1.38, 0.98)

_ROUNDING = 0.12  # of edges: they catch the light
_STEPS = 20
_CLOSE = 2e-3  # counts as touched


def _ball(p: Tensor) -> Tensor:
    return torch.linalg.vector_norm(p, dim=-1) - 1.0


def _cube(p: Tensor) -> Tensor:
    q = p.abs() - (0.82 - _ROUNDING)
    return torch.linalg.vector_norm(q.clamp(min=0), dim=-1) + q.amax(-1).clamp(max=0) - _ROUNDING


def _cylinder(p: Tensor) -> Tensor:
    across = torch.hypot(p[..., 0], p[..., 2]) - (0.76 - _ROUNDING)
    along = p[..., 1].abs() - (0.90 - _ROUNDING)
    outside = torch.hypot(across.clamp(min=0), along.clamp(min=0))
    return outside + torch.maximum(across, along).clamp(max=0) - _ROUNDING


def _cone(p: Tensor) -> Tensor:
    """Its profile is a triangle in (r, y): the distance to a convex polygon is that to its nearest edge."""
    r, y = torch.hypot(p[..., 0], p[..., 2]), p[..., 1]
    base, bottom, top = 0.92 - _ROUNDING, -0.95 + _ROUNDING, 0.95 - _ROUNDING
    height = top - bottom
    # The slanted edge from (base, bottom) to (0, top), and the bottom edge from the axis to (base, bottom).
    share = ((y - bottom) * height - (r - base) * base) / (base**2 + height**2)
    share = share.clamp(0, 1)
    slant = torch.hypot(r - base * (1 - share), y - bottom - height * share)
    under = torch.hypot((r - base).clamp(min=0), y - bottom)
    side = (r - base) * height + (y - bottom) * base  # positive beyond the slanted edge
    inside = (side < 0) & (y > bottom)
    return torch.where(inside, -1.0, 1.0) * torch.minimum(slant, under) - _ROUNDING


def _ring(p: Tensor) -> Tensor:
    """A torus that stands upright and shows its hole."""
    return torch.hypot(torch.hypot(p[..., 0], p[..., 1]) - 0.70, p[..., 2]) - 0.28


DISTANCES = (_ball, _cube, _cylinder, _cone, _ring)  # of SHAPES


def normal(shape: int, p: Tensor) -> Tensor:
    """The outward direction at local points [m, 3]: the gradient of the distance, from four differences."""
    corners = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
    values = DISTANCES[shape](p[:, None] + 5e-3 * corners)
    return torch.nn.functional.normalize(values @ corners, dim=-1)


def first_touch(shape: int, p: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """How far rays p + t d (local, [m, 3], d of length 1) go from `start` on to touch the solid; inf if they miss."""
    t, touched = start.clone(), torch.full_like(start, torch.inf)
    active = torch.arange(len(t))
    for step in range(_STEPS):
        gap = DISTANCES[shape](p + t[:, None] * d)
        t = t + gap
        if step % 4 == 3:  # drop the rays that have arrived or are past the solid
            close = gap < _CLOSE
            touched[active[close]] = t[close]
            going = ~close & (t < start + 2.2 * BOUNDS[shape])
            active, p, d, t, start = active[going], p[going], d[going], t[going], start[going]
    return touched


def passing(shape: int, p: Tensor, d: Tensor, start: Tensor, sharpness: float) -> Tensor:
    """How much of an extended light is visible along rays from p, 0..1: the smallest ratio of gap to distance, times
    `sharpness`."""
    t, seen = start.clone(), torch.ones_like(start)
    for _ in range(_STEPS):
        gap = DISTANCES[shape](p + t[:, None] * d)
        seen = torch.minimum(seen, sharpness * gap / t)
        t = t + gap.clamp(0.04, 0.35)
    return seen.clamp(0, 1)
