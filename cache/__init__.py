"""The cache between the two stages: one HDF5 file of features, of what they are, and of how they came about.

FORMAT.md specifies the file. ``layout`` knows where things stand in it, ``reader`` and ``writer`` go in and out,
``identity`` says what a cache is of, ``hashing`` and ``errors`` serve them all. Nothing here knows torch.
"""
