"""Arrays of files, found without reading them: one reader for everything that fastcrit takes from a path.

A format's module lists what a file holds (`stored.Stored`); values come slice by slice. Nothing here runs code that
lies in a file: no pickle is read but by torch's loader of tensors, and of Zarr's codecs those of a list.
"""
