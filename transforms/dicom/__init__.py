"""DICOM series to volumes in HU, or a refusal with its reason."""
