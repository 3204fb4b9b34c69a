"""The sections of the report, one module each: what a job left behind, as blocks."""
