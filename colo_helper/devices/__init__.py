"""The device model (QEMU by QMP), its state, and the guest's network taps."""
