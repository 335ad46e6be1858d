"""Arms of the augmentation study on gray views: brightness and contrast, blur. Off by default."""

import torch


def jitter_brightness_contrast(
    views: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor
) -> torch.Tensor:
    """Scale gray values, then stretch them about each view's mean; clip to [0, 1] after each.

    Args:
        views: Gray in [0, 1], (B, C, S, S).
        brightness: Factor per view, (B,).
        contrast: Factor per view, (B,).

    Returns:
        Gray in [0, 1], same shape.
    """
    views = (views * brightness[:, None, None, None]).clamp(0.0, 1.0)
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (views - mean) * contrast[:, None, None, None]).clamp(0.0, 1.0)


def gaussian_blur(views: torch.Tensor, sigma_px: torch.Tensor) -> torch.Tensor:
    """Blur each view with a Gaussian of its own width, renormalized at the edge.

    Args:
        views: (B, C, S, S) float32.
        sigma_px: Standard deviation in pixels per view, (B,); 0 leaves a view as it is.

    Returns:
        Same shape.
    """
    position = torch.arange(views.shape[-1], device=views.device, dtype=views.dtype)
    distance = (position[:, None] - position[None, :])[None] / sigma_px.clamp_min(1e-3)[:, None, None]
    weights = torch.exp(-0.5 * distance.square())
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights[:, None] @ views @ weights[:, None].transpose(-1, -2)
