"""Where volumes come from: one file per format, each finding jobs in a folder and reading one of them."""
