"""Entry point `campaign`: a study as data, run arm by arm within its budget, and continued where it was cut off."""
