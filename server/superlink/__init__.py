"""A run over Flower without anybody touching Flower: the SuperLink that the coordinator keeps, and a grid over it.

`place` says where it keeps its files and listens, `process` is Flower's SuperLink in a process of its own,
`admission` what of it companies reach, `kept` starts that process and starts it again, `control` speaks with it
through a socket that the coordinator's user alone can open, and `grid` is the run's Grid.
"""

FOLDER, SOCKET, DATABASE, LOG = "superlink", "control.sock", "state.sqlite", "superlink.log"
