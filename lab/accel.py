"""Can this machine run Xen hosts with hardware help? Found out by running a guest, not by looking for /dev/kvm."""

import subprocess
import tempfile
from pathlib import Path

#: 16-bit boot sector. It asks CPUID for SVM (8000_0001h ECX bit 2) and VMX (1h ECX bit 5), writes S, V or N to the debug
#: console (port E9h) and leaves through isa-debug-exit. The hosts need one of them for HVM guests, so N is a no.
_PROBE = bytes.fromhex(
    "66b801000080"  # mov eax, 80000001h
    "0fa2"  # cpuid
    "b053"  # mov al, 'S'
    "f6c104"  # test cl, 4
    "7511"  # jnz say
    "66b801000000"  # mov eax, 1
    "0fa2"  # cpuid
    "b056"  # mov al, 'V'
    "f6c120"  # test cl, 20h
    "7502"  # jnz say
    "b04e"  # mov al, 'N'
    "e6e9"  # say: out 0E9h, al
    "ba0105"  # mov dx, 501h
    "ee"  # out dx, al
    "f4"  # hlt
)
_SECTOR = 512
_TIMEOUT_S = 10


def choose() -> tuple[list[str], str]:
    """QEMU's accelerator arguments for a Xen host, and one sentence why."""
    if not Path("/dev/kvm").exists():
        return _EMULATION, "software emulation: this machine has no /dev/kvm"
    answer = _run_probe("kvm", "host")
    if answer in {"S", "V"}:
        return [
            "-accel",
            "kvm",
            "-cpu",
            "host",
        ], "KVM: a guest ran and sees hardware virtualisation of its own"
    if answer == "N":
        return (
            _EMULATION,
            "software emulation: KVM runs a guest, but without the nested virtualisation that HVM guests need",
        )
    return _EMULATION, "software emulation: /dev/kvm is there, but no guest ran on it"


#: SVM with nested page tables is what QEMU can emulate; the rest is what any server has had for ten years, so that
#: programs take the code paths they take there (AES for the channels above all).
_EMULATION = [
    "-accel", "tcg,thread=multi,tb-size=512",
    "-cpu", "qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq",
]  # fmt: skip


def _run_probe(accelerator: str, cpu: str) -> str:
    """The letter that the probe guest wrote; empty when it did not run."""
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "probe.img"
        disk.write_bytes(_PROBE.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa")
        command = [
            "qemu-system-x86_64", "-accel", accelerator, "-cpu", cpu, "-m", "16", "-display", "none", "-nodefaults",
            "-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0x501", "-drive", f"file={disk},format=raw,if=ide",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.decode("ascii", "replace")[:1]
