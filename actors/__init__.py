"""What runs inside a pool: a class that loads a model once and turns identities into identities."""
