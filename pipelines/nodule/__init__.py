"""Labeled nodules of a cohort: crops, masks, baselines, figures."""
