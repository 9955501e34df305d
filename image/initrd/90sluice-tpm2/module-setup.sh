#!/bin/bash
# The TPM in the initrd, for measuring the phases of the boot. dracut's own module wants tpm2-tools, which nothing here uses.

check() {
    return 255
}

depends() {
    echo systemd-sysusers systemd-udevd systemd-tmpfiles
}

installkernel() {
    instmods '=drivers/char/tpm'
}

install() {
    inst_multiple -o \
        "$udevrulesdir"/60-tpm-udev.rules \
        "$systemdutildir"/system-generators/systemd-tpm2-generator \
        "$systemdsystemunitdir"/tpm2.target
    local library
    for library in esys mu rc sys tcti-device tctildr; do
        inst_libdir_file "libtss2-$library.so.*"
    done
}
