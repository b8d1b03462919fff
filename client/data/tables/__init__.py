"""Tables: every format of them, and their rows by a contract."""
