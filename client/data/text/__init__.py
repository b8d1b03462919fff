"""Texts: documents in files, folders and archives, cut into windows of tokens."""
