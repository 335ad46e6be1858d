"""What features know of a rating beyond what needs no network: size and attenuation."""
