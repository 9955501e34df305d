#!/bin/sh
# An initrd that cannot go on ends in a panic instead of a restart, so that it is counted: as when the root has no hash tree
# that could be opened. Where no dump would be left of it, it is a restart as ever (rd.emergency=reboot).
[ ! -d /sys/module/efi_pstore ] || echo c >/proc/sysrq-trigger
