"""Entry point `campaign`: a study described in a file, run arm by arm within its budget, continued if interrupted."""
