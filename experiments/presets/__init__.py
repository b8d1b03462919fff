"""Presets in TOML: `fedblocks simulate NAME`."""
