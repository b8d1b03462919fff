"""A service as text: a systemd unit, and the file from which a container image is built.

Both run one command as one user who may write to a few folders alone. Nothing is passed through a shell. What a unit
forbids is measured: `MemoryDenyWriteExecute` is left out, since PyTorch compiles kernels at run time (a convolution
ends with "could not create a primitive" under it).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

# A person has to mend something first: input that cannot be used, and a rule of privacy or of the protocol.
NEEDS_A_PERSON = (2, 3)
STOP_SECONDS = 120
# What an image is built from, beside constraints*.txt: folders of the package, relative to its root.
SOURCES = (
    "blocks",
    "cli",
    "client",
    "experiments",
    "privacy",
    "protocol",
    "server",
    "settings",
    "threat_model",
)
_BUILD = "/src"
_UNIT = """\
# Written by `fedblocks {group} unit`. Install it as root:
#   cp {name}.service /etc/systemd/system/ && systemctl daemon-reload && systemctl enable --now {name}
[Unit]
Description={description}
After=network-online.target
Wants=network-online.target
# It is started again for ever, at the pace of RestartSec.
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
# The colon: no $ in it is a variable.
ExecStart=:{command}
Environment=FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
UMask=0077
Restart=on-failure
RestartSec=10
# A person has to mend something first; the journal says what.
RestartPreventExitStatus={exit_codes}
# It ends once the message in hand is handled; killed, it goes on after the next start.
TimeoutStopSec={stop_seconds}
KillMode=mixed

# It may write to these alone.
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome={protect_home}
PrivateTmp={private_tmp}
PrivateDevices={private_devices}
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
# A dump would hold private data.
LimitCORE=0
KeyringMode=private
RemoveIPC=yes

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# Not MemoryDenyWriteExecute: PyTorch compiles kernels while it runs.

[Install]
WantedBy=multi-user.target
"""
_CONTAINER = """\
# Written by `fedblocks {group} unit --format container`. Build it in the folder of fedblocks' sources:
#   podman build --file {name}.Containerfile --tag {name} .
# and run it ({uid} is the owner of what it may write to; docker needs no --userns):
#   podman run --detach --name {name} --restart=on-failure --userns=keep-id:uid={uid},gid={gid} --read-only \\
#       --tmpfs /tmp --cap-drop=all --security-opt=no-new-privileges --ulimit core=0 --stop-timeout {stop_seconds} \\
#       {mounts} {name}
# Better pinned by its digest: --build-arg PYTHON=docker.io/library/python@sha256:...
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm
FROM ${{PYTHON}} AS build
# PyTorch's own build without CUDA; elsewhere: --build-arg TORCH_INDEX=... Its hash is pinned, wherever it comes from.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR {build}
RUN ["python", "-m", "venv", "/opt/fedblocks"]
COPY constraints.txt constraints-cpu.txt ./
# Only files whose hashes are pinned are taken; what is installed is chosen among them, with nothing but them.
RUN /opt/fedblocks/bin/pip download --no-cache-dir --require-hashes --no-deps --dest /wheels \\
    --requirement constraints.txt
RUN /opt/fedblocks/bin/pip download --no-cache-dir --require-hashes --no-deps --dest /wheels \\
    --index-url ${{TORCH_INDEX}} --requirement constraints-cpu.txt
COPY pyproject.toml README.md *.py py.typed ./
{copies}
RUN /opt/fedblocks/bin/pip install --no-cache-dir --no-index --find-links /wheels "{build}[{extras}]"

FROM ${{PYTHON}}
COPY --from=build /opt/fedblocks /opt/fedblocks
ENV PATH=/opt/fedblocks/bin:$PATH FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
# What it may write to must be this user's own; nothing else in the image is.
USER {uid}:{gid}
VOLUME {volumes}
{ports}STOPSIGNAL SIGTERM
ENTRYPOINT {entry}
"""


@dataclass(frozen=True)
class ServiceFile:
    """What runs, as whom, and what it may write to.

    `group` of commands and `name` of the service. `words`: the command's own, without fedblocks' executable, where a
    `Path` in `writable` stands for itself. `places`: where these lie in a container. `port` that it listens on.
    """

    group: str
    name: str
    description: str
    words: tuple[str | Path, ...]
    writable: tuple[Path, ...]
    places: tuple[str, ...]
    user: str
    uid: int
    gid: int
    extras: str
    devices: bool = False
    port: int | None = None

    def systemd(self, executable: Path) -> str:
        """The unit; InputError for a path that no unit can name."""
        command = [executable, *self.words]
        return _UNIT.format(
            group=self.group,
            name=self.name,
            description=_plain(self.description),
            user=_plain(self.user),
            command=" ".join(quoted(str(word)) for word in command),
            exit_codes=" ".join(map(str, NEEDS_A_PERSON)),
            stop_seconds=STOP_SECONDS,
            writable=" ".join(quoted(str(path)) for path in self.writable),
            # Inside of what is hidden it could not be reached.
            protect_home="read-only"
            if _any_in([executable, *self.writable], "/home", "/root", "/run/user")
            else "yes",
            private_tmp="no" if _any_in([executable, *self.writable], "/tmp", "/var/tmp") else "yes",
            private_devices="no" if self.devices else "yes",
        )

    def container(self) -> str:
        """The file that an image is built from; InputError for a path that its comments cannot name."""
        inside = dict(zip(map(str, self.writable), self.places, strict=True))
        words = ["fedblocks", *(inside.get(str(word), str(word)) for word in self.words)]
        mounts = [_mount(path, place) for path, place in inside.items()]
        if self.port is not None:
            mounts.append(f"--publish {self.port}:{self.port}")
        return _CONTAINER.format(
            group=self.group,
            name=self.name,
            build=_BUILD,
            uid=self.uid,
            gid=self.gid,
            stop_seconds=STOP_SECONDS,
            mounts=" ".join(mounts),
            copies="\n".join(f"COPY {folder} {folder}/" for folder in SOURCES),
            extras=self.extras,
            volumes=json.dumps(list(self.places)),
            ports="" if self.port is None else f"EXPOSE {self.port}\n",
            entry=json.dumps(words),
        )


def quoted(word: str) -> str:
    """A word of a unit's line: no blank splits it, and no percent sign in it is a specifier."""
    return f'"{_plain(word)}"'


def _plain(text: str) -> str:
    return _checked(text).replace("%", "%%")


def _checked(text: str) -> str:
    """Raises: InputError where systemd would read another text, or a line would end."""
    if not text.isprintable() or any(sign in text for sign in '"\\'):
        raise InputError("path", text, "has a quotation mark, a backslash or a control character; rename it")
    return text


def _any_in(paths: Sequence[Path], *folders: str) -> bool:
    return any(path.is_relative_to(folder) for path in paths for folder in folders)


def _mount(path: str, place: str) -> str:
    if ":" in _checked(path):
        raise InputError("path", path, "has a colon, at which a container's volume is split; rename it")
    return f"--volume {shlex.quote(f'{path}:{place}:Z')}"
