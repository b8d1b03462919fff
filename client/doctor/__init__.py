"""What is wrong in a company's home, or soon will be, and how to mend it: `fedblocks company check`.

Nothing is changed and nothing leaves the machine but a connection to the coordinator's own address. Each part of a
home has its file here; a check that cannot go on without another one's success says nothing, the other one does.
"""

from .examination import examine
from .findings import Finding

__all__ = ["Finding", "examine"]
