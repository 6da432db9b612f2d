"""The life of one protected VM by playbooks: installed, protected, refused, unprotected; each twice."""

from lab import ssh
from lab.guests import Client


def domains(settings, host):
    return [line.split()[0] for line in ssh.run(settings, host, "xl list").splitlines()[2:]]


def test_protect_and_unprotect(installed, settings, play):
    installed()
    client = Client(settings, "h1", timeout_s=10)
    before = client.write("before")

    again = play("site")
    assert again.code == 0
    assert again.changed == {"localhost": 0, "xa": 0, "xb": 0}

    assert play("protect", "-e", "colo_vm=h1").code == 0
    again = play("protect", "-e", "colo_vm=h1")
    assert again.code == 0
    assert again.changed == {"localhost": 0, "xa": 0, "xb": 0}
    assert domains(settings, "xa") == ["h1"]
    assert domains(settings, "xb") == ["h1"]
    assert client.write("protected").writes == before.writes + 1

    refused = play("failover", "-e", "colo_vm=h1", "-e", "colo_confirm=h1")
    assert refused.code != 0
    assert "h1 is not failed over, because it may still run on its primary xa" in refused.text

    bridge = ssh.run(settings, "xb", "ls /sys/class/net/xenbr0/brif").split()
    assert bridge == ["eth1"], "the secondary's taps are off the network"

    assert play("unprotect", "-e", "colo_vm=h1").code == 0
    again = play("unprotect", "-e", "colo_vm=h1")
    assert again.code == 0
    assert again.changed == {"localhost": 0, "xa": 0, "xb": 0}
    assert domains(settings, "xa") == ["h1"]
    assert domains(settings, "xb") == []
    after = client.read()
    client.close()
    assert after.writes == before.writes + 1
    assert after.counter > before.counter
