"""A jobs file to clips, records and a report, on Ray Data."""
