"""MONAI transforms: a DICOM folder, a NIfTI file or an HU volume in; HU volumes and model inputs out."""
