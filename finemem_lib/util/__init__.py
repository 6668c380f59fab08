"""Helpers that belong to no subject.

Files that are written whole or not at all (`files.write_json`), YAML within limits
(`yaml_files.read_yaml`), versions and commit (`provenance.versions`), and `progress.Progress`.
"""
