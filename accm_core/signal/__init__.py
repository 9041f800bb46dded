"""From counts to whitened traces, peaks and snippets."""
