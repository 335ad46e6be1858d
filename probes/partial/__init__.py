"""What features add to a prediction of the rating by size and attenuation."""
