"""Build instances from the public raw sets, and fetch pretrained models.

`raw_sets.raw_units` reads the raw files, `builders.build_instances` builds instances with chunks
and questions from them, `published_sizes.size_table` compares their sizes with the published sizes.
`pretrained.fetch` downloads a pretrained model into `data/models`.
"""
