"""The report of a run: tables, figures and a page, made of plain data."""
