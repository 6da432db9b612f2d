"""What switches a lab host off when a host asks for it over the network, as a board's management controller does."""

import socket
import threading

from lab.network import in_namespace
from lab.settings import CLIENT_NUMBER, address

_PORT = 6230
#: A program for the hosts' inventory: asks for the host that it is told by its environment.
PROGRAM = "/usr/local/sbin/switch-off"
_LINES = f"""#!/bin/bash
exec 3<>/dev/tcp/{address("mgmt", CLIENT_NUMBER)}/{_PORT} || exit 1
echo "$COLO_FENCE_HOST" >&3
read -r said <&3
[ "$said" = off ]
"""


class PowerStrip(threading.Thread):
    """Listens in the lab's network until closed; ``switched`` has the hosts that it has switched off, in order."""

    def __init__(self, settings, lab):
        super().__init__(daemon=True, name="power-strip")
        self._lab = lab
        self.switched = []
        place = (address("mgmt", CLIENT_NUMBER), _PORT)
        self._listening = in_namespace(settings, lambda: socket.create_server(place))
        self.start()

    def run(self):
        """Serve one after the other."""
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return  # closed
            with connection, connection.makefile("rw") as lines:
                host = lines.readline().strip()
                self._lab.host(host).power_off()
                self.switched.append(host)
                lines.write("off\n")

    def close(self):
        """Listen no more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.join()


def install(vm, hosts):
    """Put the program onto hosts."""
    for host in hosts:
        vm.on(host, f"cat > {PROGRAM} <<'END'\n{_LINES}END\nchmod 755 {PROGRAM}")
