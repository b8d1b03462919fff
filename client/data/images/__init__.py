"""Labelled images: folders, archives, tables, arrays and the usual sets, brought to a model's size by a contract."""
