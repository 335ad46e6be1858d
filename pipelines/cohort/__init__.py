"""The cohort on disk: volumes, tables, pseudonyms."""
