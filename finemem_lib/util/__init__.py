"""Helpers that belong to no subject.

Files that are written whole or not at all (`files.write_json`), YAML and JSON read within limits
(`yaml_files.read_yaml`, `validation.parse_json`), versions and commit (`provenance.versions`), and
`progress.Progress`.
"""
