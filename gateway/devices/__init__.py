"""What is plugged in: sysfs, accelerators, and the kernel's word when something comes or goes."""
