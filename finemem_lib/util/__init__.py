"""General helpers: files, YAML and JSON, provenance, console output.

`files.write_json` writes files atomically, `yaml_files.read_yaml` and `validation.parse_json` read
files within limits, `provenance.versions` returns the versions of packages, and
`progress.Progress` estimates the time remaining.
"""
