"""The witness of a pair: an etcd beside the client, on neither of the hosts."""

import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from colo_helper.arbiter.etcd import EtcdArbiter, Identity
from colo_helper.arbiter.interface import ArbiterError
from lab.network import in_namespace
from lab.settings import CLIENT_NUMBER, HOSTS, address

_START_S = 60


def with_arbiter(witness, lease_s=10, peer_timeout_ms=5000):
    """Variables that have h1 protected from the first host to the second, with a witness."""
    first, second = HOSTS
    arbiter = {"endpoints": [witness.url], "lease_s": lease_s}
    protected = {
        "primary": first,
        "secondary": second,
        "peer_timeout_ms": peer_timeout_ms,
        "arbiter": arbiter,
    }
    return {"colo_vm": "h1", "colo_vms": {"h1": protected}}


class WitnessHost:
    """etcd in the lab's network; it ends with the process that made this, however that ends."""

    def __init__(self, settings):
        self.settings = settings
        self.url = f"http://{address('mgmt', CLIENT_NUMBER)}:2379"
        self._directory = Path(tempfile.mkdtemp(prefix="colo-witness-"))
        self._process = None

    @contextmanager
    def running(self):
        """Start it, and leave nothing of it."""
        try:
            self.start()
            yield self
        finally:
            self.kill()
            shutil.rmtree(self._directory)

    def start(self):
        """Start it where it was killed; returns when it answers."""
        log = self._directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.settings.netns, "setpriv", "--pdeathsig", "KILL", "--"),
                    *("etcd", f"--data-dir={self._directory}/data", f"--listen-client-urls={self.url}"),
                    *(f"--advertise-client-urls={self.url}", "--listen-peer-urls=http://127.0.0.1:0"),
                ],
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, "etcd does not answer"
            time.sleep(0.1)  # it tells nobody when it listens

    def kill(self):
        """Kill it; what it has written stays."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def keep(self, tag):
        """Set aside what it has written, as a state that `restore` goes back to."""
        self.kill()
        shutil.copytree(self._directory / "data", self._directory / tag, dirs_exist_ok=True)
        self.start()

    def restore(self, tag):
        """Go on from what was set aside; a lease begins anew."""
        self.kill()
        shutil.rmtree(self._directory / "data")
        shutil.copytree(self._directory / tag, self._directory / "data")
        self.start()

    def read(self, vm):
        """What is kept of a VM."""
        return in_namespace(self.settings, lambda: EtcdArbiter([self.url], Identity(), 5.0).read(vm))

    def _answers(self):
        try:
            return self.read("nobody") is not None
        except ArbiterError:
            return False
