"""Names of CT windows and features; separate from the code that computes them, which needs torch."""

from typing import Literal

OneWindow = Literal["lung", "mediastinal", "wide", "full"]
"""`full` is -1000..1000 HU, which keeps attenuation."""
WindowName = Literal[OneWindow, "stacked"]
"""`stacked` joins the features under the article's three, lung, mediastinal and wide."""
SliceFeature = Literal["class_token", "mean_patch", "both"]
"""One vector per image."""
NoduleFeature = Literal[SliceFeature, "neighborhood"]
"""One vector per nodule; `neighborhood` is the mean of the patches within 10 mm of its center."""
FeatureName = Literal[NoduleFeature, "roi", "patches"]
"""`roi` reads patches inside the nodule and around it; `patches` keeps all of them."""
