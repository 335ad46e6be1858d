"""What a view shows: its extent, center, mirror, window and the intensity arms."""

from dataclasses import dataclass, field
from typing import Literal

from transforms.window_policy import WindowConfig

Interpolation = Literal["bicubic", "bilinear"]
N_GLOBAL = 2
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """How the views of one sample are drawn: two global views and `n_local` local ones."""

    size_px: int = 224
    """Side of a global view."""
    extent: Literal["fraction", "mm"] = "fraction"
    """Whether a view's extent is a share of the slice's area or a field of view in mm."""
    fraction: tuple[float, float] = (0.5, 1.0)
    """Share of the slice's area, uniform, with an aspect ratio of 3/4 to 4/3 (torchvision's RandomResizedCrop)."""
    depth_px: int = 0
    """Depth of a global view in voxels: views are cubes (depth, size, size) in mm; 0: views are slice triplets."""
    depth_mm: tuple[float, float] | None = None
    """Extent of a cube along z, log-uniform; None: its voxels are as long along z as in the plane."""
    square: bool = False
    """Whether crops by `fraction` are square; crops in mm and those of `shared_scale` always are."""
    fov_mm: tuple[float, float] = (30.0, 360.0)
    """Side of the field of view, log-uniform; a slice that is smaller is shown whole, never padded."""
    shared_scale: bool = False
    """Whether all views of one sample have the same mm per pixel."""
    center: Literal["body", "uniform", "point", "lung"] = "body"
    """Crop centers: uniform over the body, uniform over the slice, at the sample's point (else over the body), or
    around one place in the lung that all global views of the sample share (in the body, where a slice has no lung)."""
    center_jitter_mm: float = 0.0
    """Half side of the square in which `center="point"` and `"lung"` move the center."""
    interpolation: Interpolation = "bicubic"
    """Antialiased bicubic of crops on whole pixels, or bilinear of crops anywhere, which aliases where it shrinks.
    Cubes do not read it: they lie anywhere, and are linear and antialiased along every axis."""
    neighbor_slices: int = 0
    """In training the second view shows another slice of the same nodule, up to this many away; 0: the same slice."""
    flip: bool = True
    """Whether half of the views are mirrored left to right."""
    window: WindowConfig = field(default_factory=WindowConfig)
    n_local: int = 0
    local_size_px: int = 98
    local_fraction: tuple[float, float] = (0.05, 0.5)
    """Share of the slice's area in a local view; not read under `shared_scale`."""
    local_fov_mm: tuple[float, float] = (15.0, 60.0)
    """Field of view of a local view; not read under `shared_scale`."""
    local_depth_px: int = 0
    """Depth of a local view in voxels, where views are cubes."""
    local_depth_mm: tuple[float, float] | None = None
    """Extent of a local cube along z, as `depth_mm`; not read under `shared_scale`."""
    color_jitter: tuple[float, float] = (0.0, 0.0)
    """Largest relative change of brightness and contrast; (0, 0) is off."""
    gaussian_blur: tuple[float, float] = (0.0, 0.0)
    """Range of the blur's standard deviation in pixels of the view, uniform; (0, 0) is off."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        for name, size_px in (("size_px", self.size_px), ("local_size_px", self.local_size_px)):
            if size_px < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {size_px}")
        for name, choices in (
            ("extent", ("fraction", "mm")),
            ("center", ("body", "uniform", "point", "lung")),
            ("interpolation", ("bicubic", "bilinear")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(choices)}"
                )
        for name, bounds, highest, unit in (
            ("fraction", self.fraction, 1.0, "of the slice"),
            ("local_fraction", self.local_fraction, 1.0, "of the slice"),
            ("fov_mm", self.fov_mm, 1000.0, "mm"),
            ("local_fov_mm", self.local_fov_mm, 1000.0, "mm"),
        ):
            if not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= highest):
                raise ValueError(
                    f"{name} must be a range (low, high) with 0 < low <= high <= {highest:g} {unit}, got {bounds}"
                )
        if self.n_local < 0 or self.neighbor_slices < 0:
            raise ValueError(
                f"n_local and neighbor_slices must be 0 or more, got {self.n_local} and {self.neighbor_slices}"
            )
        if not self.center_jitter_mm >= 0:
            raise ValueError(f"center_jitter_mm must be 0 or more, got {self.center_jitter_mm}")
        if not all(0 <= share < 1 for share in self.color_jitter):
            raise ValueError(f"color_jitter must be two shares from 0 to below 1, got {self.color_jitter}")
        if not 0 <= self.gaussian_blur[0] <= self.gaussian_blur[1]:
            raise ValueError(f"gaussian_blur must be a rising range of pixels, got {self.gaussian_blur}")
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"std must be positive, got {self.std}")
        if self.shared_scale and self.n_local and self.local_size_px > self.size_px:
            raise ValueError(
                f"local views of {self.local_size_px} px at the scale of global views of {self.size_px} px "
                "would show more than those; make local_size_px smaller"
            )
        self._check_depth()

    def _check_depth(self) -> None:
        """Refuse settings that cubes do not have, and depths of views that are no cubes."""
        depths = {name: getattr(self, name) for name in ("depth_px", "local_depth_px")}
        for name, depth_px in depths.items():
            if depth_px < 0:
                raise ValueError(f"{name} must be 0 (slice triplets) or more voxels, got {depth_px}")
        for name in ("depth_mm", "local_depth_mm"):
            bounds = getattr(self, name)
            if bounds is not None and not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= 1000):
                raise ValueError(
                    f"{name} must be a range (low, high) with 0 < low <= high <= 1000 mm, got {bounds}"
                )
        if not self.depth_px:
            given = [name for name in ("depth_mm", "local_depth_px", "local_depth_mm") if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} is of cubes: set depth_px to their depth in voxels")
            return
        for name, value, wanted in (
            ("extent", self.extent, "mm"),
            ("neighbor_slices", self.neighbor_slices, 0),
            ("color_jitter", tuple(self.color_jitter), (0.0, 0.0)),
            ("gaussian_blur", tuple(self.gaussian_blur), (0.0, 0.0)),
        ):
            if value != wanted:
                raise ValueError(f"cubes (depth_px {self.depth_px}) have {name}={wanted} alone, got {value}")
        if self.window.policy == "ranges":
            raise ValueError(
                "window policy 'ranges' fills three channels; cubes have one: take another policy"
            )
        if bool(self.n_local) != bool(self.local_depth_px):
            raise ValueError(
                f"local cubes need n_local and local_depth_px, got {self.n_local} and {self.local_depth_px}"
            )
        if self.shared_scale and self.local_depth_px > self.depth_px:
            raise ValueError(
                f"local cubes {self.local_depth_px} voxels deep at the scale of global ones of {self.depth_px} would "
                "show more than those; make local_depth_px smaller"
            )

    @property
    def is_3d(self) -> bool:
        """Whether views are cubes."""
        return self.depth_px > 0

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean gray of each channel that a network gets: three of a triplet, one of a cube (the mean of the three)."""
        return (sum(self.mean) / 3,) if self.is_3d else self.mean

    @property
    def channel_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, as `channel_mean`."""
        return (sum(self.std) / 3,) if self.is_3d else self.std

    def view_shapes(self) -> list[tuple[int, int, int]]:
        """Voxels (z, y, x) of each view where views are cubes: two global ones, then the local ones."""
        whole = (self.depth_px, self.size_px, self.size_px)
        local = (self.local_depth_px, self.local_size_px, self.local_size_px)
        return [whole] * N_GLOBAL + [local] * self.n_local
