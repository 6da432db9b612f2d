"""The witness of a pair: an etcd beside the client, on neither of the hosts."""

import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from colo_helper.arbiter.etcd import EtcdArbiter, Identity
from colo_helper.arbiter.interface import ArbiterError
from lab.network import in_namespace
from lab.settings import CLIENT_NUMBER, address

_START_S = 60


class WitnessHost:
    """etcd in the lab's network; it ends with the process that made this, however that ends."""

    def __init__(self, settings):
        self.settings = settings
        self.url = f"http://{address('mgmt', CLIENT_NUMBER)}:2379"

    @contextmanager
    def running(self):
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory, "log")
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [
                        *("ip", "netns", "exec", self.settings.netns, "setpriv", "--pdeathsig", "KILL", "--"),
                        *("etcd", f"--data-dir={directory}/data", f"--listen-client-urls={self.url}"),
                        *(f"--advertise-client-urls={self.url}", "--listen-peer-urls=http://127.0.0.1:0"),
                    ],
                    stdout=output,
                    stderr=output,
                )
            try:
                deadline = time.monotonic() + _START_S
                while not self._answers():
                    assert process.poll() is None, log.read_text()[-2000:]
                    assert time.monotonic() < deadline, "etcd does not answer"
                    time.sleep(0.1)  # it tells nobody when it listens
                yield self
            finally:
                process.kill()
                process.wait()

    def read(self, vm):
        """What is kept of a VM."""
        return in_namespace(self.settings, lambda: EtcdArbiter([self.url], Identity(), 5.0).read(vm))

    def _answers(self):
        try:
            return self.read("nobody") is not None
        except ArbiterError:
            return False
