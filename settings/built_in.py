"""What the classes of built-in sources are called, in the order of their numbers; for what reads no data."""

_SUBJECTS = (
    "algebra", "compiler", "databases", "distributed-training", "graphs", "language-models", "learning", "numerics",
    "physics", "plots", "statistics", "tables",
)  # fmt: skip
CLASS_NAMES = {"documentation-public": _SUBJECTS, "documentation-private": _SUBJECTS}
