"""From clean glyph masks to training images, a whole batch at a time in torch.

The order imitates how a scanned character comes about: deform the strokes, choose a pen, cut the
character out of the page, sample it coarsely, add the scanner's contrast and noise. Most images pass
through 8 x 8 pixels and are tightly cut (as scanned digits are), some stay sharper or smaller.
All randomness comes from the generator given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

IMAGE_SIZE = 32
PENS = (-3, 1, 3, 5, 7)  # max-pool windows that thicken the strokes; -3 thins them, 1 leaves them
PEN_CHANCES = (0.05, 0.25, 0.3, 0.25, 0.15)
BOLD_PEN_CHANCES = (0.2, 0.45, 0.25, 0.1, 0.0)
GRIDS = (8, 16, 32)  # pixels a side that the character is sampled with
GRID_CHANCES = (0.8, 0.1, 0.1)
LOOSE_CHANCE = 0.2  # share of the images with a margin round the character


@dataclass(frozen=True)
class Rendering:
    """``images`` [B, 3, IMAGE_SIZE, IMAGE_SIZE] in 0..1 and, per image, what a caption can say of it."""

    images: torch.Tensor
    thick: torch.Tensor
    leaning: torch.Tensor
    inverted: torch.Tensor
    coloured: torch.Tensor
    coarse: torch.Tensor


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def render(masks: torch.Tensor, bold: torch.Tensor, generator: torch.Generator) -> Rendering:
    """``masks`` [B, S, S] uint8 and ``bold`` [B] to augmented images."""
    batch = len(masks)
    ink, lean = deform(masks.unsqueeze(1).float() / 255, generator)
    chances = torch.where(bold.unsqueeze(1), torch.tensor(BOLD_PEN_CHANCES), torch.tensor(PEN_CHANCES))
    pen = torch.multinomial(chances, 1, generator=generator).squeeze(1)
    ink = cut_out(apply_pen(ink, pen), generator)
    grid = torch.multinomial(torch.tensor(GRID_CHANCES), batch, replacement=True, generator=generator)
    ink = scan(ink, grid, generator)
    images, inverted, coloured = colour(ink, generator)
    return Rendering(images, (pen >= 3) | bold, lean.abs() > 0.25, inverted, coloured, grid == 0)


def deform(ink: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random affine map and elastic distortion of [B, 1, S, S]; also each image's shear [B]."""
    batch = len(ink)
    angle = uniform((batch,), -0.25, 0.25, generator)
    lean = uniform((batch,), -0.4, 0.4, generator)
    stretch = torch.exp(uniform((batch,), -0.3, 0.3, generator))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(batch)
    turn = torch.stack([cos, -sin, sin, cos], 1).view(batch, 2, 2)
    shear = torch.stack([stretch, lean, zero, 1 / stretch], 1).view(batch, 2, 2)
    theta = torch.cat([1.15 * turn @ shear, torch.zeros(batch, 2, 1)], 2)  # 1.15 zooms out: room to move
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    for knots, strength in ((4, 0.11), (7, 0.045)):  # slow bends of whole strokes, then wobbles
        amount = uniform((batch, 1, 1, 1), 0, 1.5, generator) * strength
        shifts = torch.randn((batch, 2, knots, knots), generator=generator) * amount
        smooth = F.interpolate(shifts, size=ink.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(ink, grid, align_corners=False), lean


def apply_pen(ink: torch.Tensor, pen: torch.Tensor) -> torch.Tensor:
    """Thicken or thin the strokes of [B, 1, S, S]; ``pen`` [B] indexes PENS."""
    out = ink.clone()
    for index, window in enumerate(PENS):
        chosen = (pen == index).nonzero().squeeze(1)
        if window > 1 and len(chosen):
            out[chosen] = F.max_pool2d(ink[chosen], window, stride=1, padding=window // 2)
        elif window < 0 and len(chosen):
            out[chosen] = 0.5 * ink[chosen] - 0.5 * F.max_pool2d(-ink[chosen], -window, stride=1, padding=1)
    return out


def cut_out(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cut [B, 1, S, S] to the bounding box of its ink, at IMAGE_SIZE: [B, 1, IMAGE_SIZE, IMAGE_SIZE].

    The longer side of the box fills the frame (nearly, or clearly less for the loose images) and
    the character sits in the middle of the other axis.
    """
    batch, size = len(ink), ink.shape[-1]
    places = (torch.arange(size) * 2 + 1) / size - 1
    centre, half = [], []
    for axis in (2, 3):  # 2 removes the rows and leaves x, 3 leaves y
        used = ink.amax(dim=axis).squeeze(1) > 0.3
        first = torch.where(used, places, torch.tensor(2.0)).amin(1).clamp(max=1)
        last = torch.where(used, places, torch.tensor(-2.0)).amax(1).clamp(min=-1)
        centre.append((first + last) / 2)
        half.append((last - first).abs() / 2 + 1 / size)
    frame = torch.maximum(half[0], half[1])
    loose = torch.rand(batch, generator=generator) < LOOSE_CHANCE
    margin = torch.where(loose, uniform((batch,), 1.1, 1.7, generator), uniform((batch,), 0.95, 1.06, generator))
    room = torch.where(loose, (margin - 1) * 0.8, torch.tensor(0.06))
    shift = uniform((batch, 2), -1, 1, generator) * (room * frame).unsqueeze(1)
    scale = frame * margin
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale, scale
    theta[:, :, 2] = torch.stack(centre, 1) + shift
    grid = F.affine_grid(theta, [batch, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    return F.grid_sample(ink, grid, align_corners=False)


def scan(ink: torch.Tensor, grid: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sample [B, 1, 32, 32] with a coarse sensor, add contrast and noise, enlarge it bicubically again."""
    sharp = ((ink - 0.5) * 4 + 0.5).clamp(0, 1)  # scanners see ink or paper, not the soft edges of masks
    out = torch.empty_like(ink)
    for index, pixels in enumerate(GRIDS):
        chosen = (grid == index).nonzero().squeeze(1)
        if len(chosen) == 0:
            continue
        small = F.adaptive_avg_pool2d(sharp[chosen], pixels)
        gamma = torch.exp(uniform((len(chosen), 1, 1, 1), -0.7, 0.5, generator))
        small = small.clamp(0, 1) ** gamma
        noise = uniform((len(chosen), 1, 1, 1), 0, 0.08, generator)
        small = (small + torch.randn(small.shape, generator=generator) * noise).clamp(0, 1)
        # antialias=True is Pillow's bicubic kernel, which open_clip's preprocessing uses
        size = [IMAGE_SIZE, IMAGE_SIZE]
        out[chosen] = F.interpolate(small, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    return out


def colour(ink: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ink [B, 1, H, W] to RGB, mostly white on black; also which are inverted and which coloured."""
    batch = len(ink)
    inverted = torch.rand(batch, generator=generator) < 0.08
    coloured = torch.rand(batch, generator=generator) < 0.08
    pen = uniform((batch, 1, 1, 1), 0.75, 1, generator).expand(batch, 3, 1, 1)
    paper = uniform((batch, 1, 1, 1), 0, 0.08, generator).expand(batch, 3, 1, 1)
    pen = torch.where(coloured.view(-1, 1, 1, 1), uniform((batch, 3, 1, 1), 0.4, 1, generator), pen)
    paper = torch.where(coloured.view(-1, 1, 1, 1), uniform((batch, 3, 1, 1), 0, 0.3, generator), paper)
    images = paper + (pen - paper) * ink
    return torch.where(inverted.view(-1, 1, 1, 1), 1 - images, images), inverted, coloured
