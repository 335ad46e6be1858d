"""The names by which windows and features are chosen; apart from what computes them, which needs torch."""

from typing import Literal

OneWindow = Literal["lung", "mediastinal", "wide"]
WindowName = Literal[OneWindow, "stacked"]
"""`stacked` joins the features under all three."""
SliceFeature = Literal["class_token", "mean_patch", "both"]
"""What says something of a whole image."""
NoduleFeature = Literal[SliceFeature, "neighborhood"]
"""One vector a nodule; `neighborhood` is the mean of the patches within 10 mm of its center."""
FeatureName = Literal[NoduleFeature, "patches"]
"""`patches` keeps all of them."""
