"""A vision model's opinion of an identity: numbered faces on a sheet, a question, an answer."""
