"""Face-recognition training sets of people who do not exist, and recognizers trained on them."""

__version__ = "0.1.0"
