"""What a person runs: one module a job, the stage runner and the command line."""
