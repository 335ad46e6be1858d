"""Where volumes come from: one module per format; each finds jobs in a folder and reads one of them."""
