"""Finding images that show somebody else, repeated images, and people who stand in a set twice.

`cluster` holds the two rules for the images of one identity, `calibration` the thresholds of the
default rule, `doubles` the search for two folders of one person, `pictures` the search for repeated
images, and `marking` puts the verdicts into a row.
"""
