#!/usr/bin/python3 -IS
"""What somebody can do who has a VM's channel key: tries it, and prints what each attempt got as JSON in its last line.

Usage: thief.py ADDRESS PORT KEY VM [USER]. Runs on a host, with paramiko of the installed release and OpenSSH's own clients.
Each entry has ``got``: empty when the attempt was refused, otherwise what came of it; and ``said``, the refusal.
"""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.realpath("/opt/colo-helper/current/site-packages"))

import paramiko
from paramiko.common import cMSG_CHANNEL_REQUEST

ADDRESS, PORT, KEY, VM, USER = (
    sys.argv[1],
    int(sys.argv[2]),
    sys.argv[3],
    sys.argv[4],
    (*sys.argv[5:], "colo")[0],
)
KNOWN_HOSTS = os.environ.get("THIEF_KNOWN_HOSTS", "/etc/colo/ssh/known_hosts")
OPTIONS = ["-F/dev/null", "-oBatchMode=yes", "-oIdentitiesOnly=yes", "-oStrictHostKeyChecking=yes", "-i" + KEY,
           "-oUserKnownHostsFile=" + KNOWN_HOSTS, "-oGlobalKnownHostsFile=/dev/null"]  # fmt: skip
TIMEOUT_S = 60
with socket.create_server(("127.0.0.1", 0)) as free:
    LOCAL_PORT = free.getsockname()[1]


def connect(user=USER):
    client = paramiko.SSHClient()
    client.load_host_keys(KNOWN_HOSTS)
    client.connect(
        ADDRESS, PORT, user, key_filename=KEY, allow_agent=False, look_for_keys=False, timeout=TIMEOUT_S
    )
    return client


def outcome(channel):
    """What a session gave: everything it wrote, and whether it ended well."""
    channel.settimeout(TIMEOUT_S)
    out, err = channel.makefile("rb").read(), channel.makefile_stderr("rb").read()
    status = channel.recv_exit_status()
    return (repr(out) if out else "") + ("exit status 0" if status == 0 else ""), err.decode(
        errors="replace"
    ).strip()


kept = []


def session():
    """A session of the one connection that is kept for all who need one after the other: a login costs a lab's host seconds."""
    if kept:
        try:
            return kept[0].get_transport().open_session(timeout=TIMEOUT_S)
        except (paramiko.SSHException, EOFError):
            # Closed by the peer, or the session before has not quite ended there.
            kept.pop().close()
    kept.append(connect())
    return kept[0].get_transport().open_session(timeout=TIMEOUT_S)


def with_session(action):
    """Do something with a session."""
    channel = session()
    try:
        return action(channel)
    except (paramiko.SSHException, EOFError) as error:
        return "", str(error) or type(error).__name__
    finally:
        channel.close()


def command(text):
    def run(channel):
        channel.exec_command(text)
        channel.shutdown_write()
        return outcome(channel)

    return with_session(run)


def shell():
    def run(channel):
        channel.invoke_shell()
        channel.sendall(b"id\n")
        channel.shutdown_write()
        return outcome(channel)

    return with_session(run)


def subsystem():
    def run(channel):
        channel.invoke_subsystem("sftp")
        channel.shutdown_write()
        return outcome(channel)

    return with_session(run)


def terminal():
    def run(channel):
        channel.get_pty()
        return "a terminal", ""

    return with_session(run)


def agent():
    """As paramiko's request_forward_agent, which does not wait for the answer."""

    def run(channel):
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(channel.remote_chanid)
        message.add_string("auth-agent-req@openssh.com")
        message.add_boolean(True)
        channel._event_pending()
        channel.transport._send_user_message(message)
        channel._wait_for_event()
        return "an agent's socket", ""

    return with_session(run)


def display():
    def run(channel):
        channel.request_x11()
        return "a display", ""

    return with_session(run)


def second_session():
    client = connect()
    try:
        first = client.get_transport().open_session(timeout=TIMEOUT_S)
        client.get_transport().open_session(timeout=TIMEOUT_S)
        first.close()  # not sooner: one that nobody holds is closed by itself
    except (paramiko.SSHException, EOFError) as error:
        return "", str(error)
    else:
        return "a second session", ""
    finally:
        client.close()


def other_user():
    try:
        connect("root").close()
    except paramiko.AuthenticationException as error:
        return "", str(error)
    return "a login as root", ""


def run_client(*words):
    """An OpenSSH client that ends by itself."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    said = " ".join(done.stderr.split())
    return ("exit status 0 " if done.returncode == 0 else "") + done.stdout.strip(), said


def ssh(*words):
    return run_client("ssh", *OPTIONS, f"-p{PORT}", *words)


def reverse(where):
    """-R: sshd would listen for us."""
    words = [
        "ssh",
        *OPTIONS,
        f"-p{PORT}",
        "-N",
        "-oExitOnForwardFailure=yes",
        f"-R{where}",
        f"{USER}@{ADDRESS}",
    ]
    try:
        return run_client(*words)
    except subprocess.TimeoutExpired:
        return f"a listener at {where}", ""


def through(option, talk):
    """-L and -D listen here; what comes through when somebody connects?"""
    words = ["ssh", *OPTIONS, f"-p{PORT}", "-N", option, f"{USER}@{ADDRESS}"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as client:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", LOCAL_PORT), 5)
                    break
                except OSError:
                    if time.monotonic() > deadline or client.poll() is not None:
                        raise
                    time.sleep(0.2)
            with connection:
                connection.settimeout(10)
                got = talk(connection)
        finally:
            client.terminate()
            said = " ".join(client.stderr.read().split())
    return got, said


def hear(connection):
    """What the other end says first: its version, if it is an sshd."""
    try:
        return repr(data) if (data := connection.recv(64)) else ""
    except ConnectionResetError:
        return ""
    except TimeoutError:
        return "a connection that stays"


def socks(connection):
    """SOCKS 4: connect to the peer's own sshd; the second byte of the answer is 90 when it was granted."""
    connection.sendall(b"\x04\x01\x00\x16\x7f\x00\x00\x01\x00")
    try:
        answer = connection.recv(8)
        return hear(connection) if answer[1:2] == b"\x5a" else ""
    except ConnectionResetError:
        return ""


WITH_PARAMIKO = {
    "a shell": shell,
    "a command": lambda: command("id"),
    "a command behind a good one": lambda: command(f"attach {VM} forward; id"),
    "another verb of the program": lambda: command(f"/opt/colo-helper/current/bin/colo-helper ctl {VM} stop"),
    "another VM": lambda: command(f"attach not-{VM} forward"),
    "a place for a VM of his own": lambda: command("xl migrate-receive"),
    "a path for a VM": lambda: command(f"attach ../{VM} forward"),
    "another channel": lambda: command(f"attach {VM} control"),
    "sftp as a subsystem": subsystem,
    "a terminal": terminal,
    "an agent": agent,
    "a display": display,
    "a second session": second_session,
    "another user": other_user,
}
WITH_OPENSSH = {
    "sftp": lambda: run_client("sftp", *OPTIONS, f"-P{PORT}", "-b/dev/null", f"{USER}@{ADDRESS}"),
    "scp": lambda: run_client("scp", *OPTIONS, f"-P{PORT}", "/etc/hostname", f"{USER}@{ADDRESS}:/tmp/thief"),
    "scp as it was": lambda: run_client(
        "scp", "-O", *OPTIONS, f"-P{PORT}", f"{USER}@{ADDRESS}:/etc/passwd", "/dev/null"
    ),
    "a way through (-W)": lambda: ssh(f"-W127.0.0.1:{PORT}", f"{USER}@{ADDRESS}"),
    "a port there (-L)": lambda: through(f"-L{LOCAL_PORT}:127.0.0.1:{PORT}", hear),
    "a socket there (-L)": lambda: through(f"-L{LOCAL_PORT}:/run/colo/{VM}/attach.sock", hear),
    "any port there (-D)": lambda: through(f"-D{LOCAL_PORT}", socks),
    "a port for others (-R)": lambda: reverse("12998:127.0.0.1:22"),
    "a socket for others (-R)": lambda: reverse("/tmp/thief.sock:127.0.0.1:22"),
}


def tried(attempts):
    """Try them one after the other."""
    found = []
    for name, attempt in attempts.items():
        got, said = attempt()
        found.append({"attempt": name, "got": got, "said": said[-300:]})
    return found


# Two at a time: while one waits for the other host's slow CPU, the other one uses this host's.
with ThreadPoolExecutor() as pool:
    report = [one for found in pool.map(tried, (WITH_PARAMIKO, WITH_OPENSSH)) for one in found]
for client in kept:
    client.close()
sys.stdout.write("\n" + json.dumps(report) + "\n")
