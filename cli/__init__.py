"""The command line, a module a group of commands; `main` mounts them and is the entry point.

A command's heavy imports wait until it runs.
"""
