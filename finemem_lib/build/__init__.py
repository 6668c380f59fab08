"""Build instances from the public raw sets, and fetch pretrained models.

`raw_sets.raw_units` reads the raw files, `builders.build_instances` cuts them into chunks and
questions, `published_sizes.size_table` compares their sizes with the published ones.
`pretrained.fetch` puts a pretrained model into `data/models`.
"""
