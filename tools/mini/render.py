"""Rendering of glyph masks as training images, in batches.

The steps imitate scanned handwriting: slant, pen, cropping, coarse sampling, contrast and noise. Most images are
cropped tightly and sampled with 8 x 8 pixels, as the scanned digits are. Others are sharper or smaller. All random
numbers come from the generator in the arguments.

Shapes: B images of a batch, S width and height of a mask.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

IMAGE_SIZE = 32
PENS = (-3, 1, 3, 5, 7)  # max-pool windows that thicken strokes; -3 thins them, 1 changes nothing
PEN_CHANCES = (0.05, 0.25, 0.3, 0.25, 0.15)
BOLD_PEN_CHANCES = (0.2, 0.45, 0.25, 0.1, 0.0)
GRIDS = (8, 16, 32)  # widths and heights in pixels at which characters are sampled
GRID_CHANCES = (0.8, 0.1, 0.1)
LOOSE_CHANCE = 0.2  # probability of a margin around the character


@dataclass(frozen=True)
class Rendering:
    """Images with their attributes for captions.

    Attributes:
        images: Values in 0 ... 1, shape `[B, 3, IMAGE_SIZE, IMAGE_SIZE]`.
        thick, leaning, inverted, coloured, coarse: Whether an image has the attribute, shape `[B]`.
    """

    images: torch.Tensor
    thick: torch.Tensor
    leaning: torch.Tensor
    inverted: torch.Tensor
    coloured: torch.Tensor
    coarse: torch.Tensor


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Sample uniform random numbers between `low` and `high`."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def render(masks: torch.Tensor, bold: torch.Tensor, generator: torch.Generator) -> Rendering:
    """Render masks, uint8 `[B, S, S]`, as augmented images. `bold` marks masks in a bold font, `[B]`."""
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
    """Distort images `[B, 1, S, S]` by random affine and elastic maps; returns images and shear `[B]`."""
    batch = len(ink)
    angle = uniform((batch,), -0.25, 0.25, generator)
    lean = uniform((batch,), -0.4, 0.4, generator)
    stretch = torch.exp(uniform((batch,), -0.3, 0.3, generator))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(batch)
    turn = torch.stack([cos, -sin, sin, cos], 1).view(batch, 2, 2)
    shear = torch.stack([stretch, lean, zero, 1 / stretch], 1).view(batch, 2, 2)
    theta = torch.cat([1.15 * turn @ shear, torch.zeros(batch, 2, 1)], 2)  # 1.15 leaves room for shifts
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    for knots, strength in ((4, 0.11), (7, 0.045)):  # the first bends whole strokes, the second parts of them
        amount = uniform((batch, 1, 1, 1), 0, 1.5, generator) * strength
        shifts = torch.randn((batch, 2, knots, knots), generator=generator) * amount
        smooth = F.interpolate(shifts, size=ink.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(ink, grid, align_corners=False), lean


def apply_pen(ink: torch.Tensor, pen: torch.Tensor) -> torch.Tensor:
    """Thicken or thin the strokes of images `[B, 1, S, S]`; `pen` has indices of `PENS`, `[B]`."""
    out = ink.clone()
    for index, window in enumerate(PENS):
        chosen = (pen == index).nonzero().squeeze(1)
        if window > 1 and len(chosen):
            out[chosen] = F.max_pool2d(ink[chosen], window, stride=1, padding=window // 2)
        elif window < 0 and len(chosen):
            out[chosen] = 0.5 * ink[chosen] - 0.5 * F.max_pool2d(-ink[chosen], -window, stride=1, padding=1)
    return out


def cut_out(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crop images `[B, 1, S, S]` to the bounding box of their ink, `[B, 1, IMAGE_SIZE, IMAGE_SIZE]`.

    The longer side of the box nearly fills the image, or less of it with probability `LOOSE_CHANCE`. Along the other
    axis the character is near the middle.
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
    """Sample images `[B, 1, 32, 32]` coarsely, add contrast and noise, and enlarge them by bicubic interpolation."""
    sharp = ((ink - 0.5) * 4 + 0.5).clamp(0, 1)  # sharp edges, as in a scan
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
    """Colour ink `[B, 1, H, W]`; returns RGB images, and which of them are inverted and which coloured, `[B]`."""
    batch = len(ink)
    inverted = torch.rand(batch, generator=generator) < 0.08
    coloured = torch.rand(batch, generator=generator) < 0.08
    pen = uniform((batch, 1, 1, 1), 0.75, 1, generator).expand(batch, 3, 1, 1)
    paper = uniform((batch, 1, 1, 1), 0, 0.08, generator).expand(batch, 3, 1, 1)
    pen = torch.where(coloured.view(-1, 1, 1, 1), uniform((batch, 3, 1, 1), 0.4, 1, generator), pen)
    paper = torch.where(coloured.view(-1, 1, 1, 1), uniform((batch, 3, 1, 1), 0, 0.3, generator), paper)
    images = paper + (pen - paper) * ink
    return torch.where(inverted.view(-1, 1, 1, 1), 1 - images, images), inverted, coloured
