"""From an embedding to units: clusters, templates, matching, merging, quality."""
