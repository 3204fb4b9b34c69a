"""What a build will take, before anything runs: images, bytes, operations, time, machines, money.

`walk` follows the jobs of a configuration and says what each gets and makes, `networks` what a
network computes for an image, `rates` how fast that goes, `timing` and `bill` turn it into hours of
machines and dollars. `actual` reads what a build really took.
"""
