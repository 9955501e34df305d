# Takes the first slot of BOOT_ORDER that has tries left, counts it down, and starts its kernel image through U-Boot's UEFI.
test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "a b"
test -n "${BOOT_a_LEFT}" || setenv BOOT_a_LEFT 99
test -n "${BOOT_b_LEFT}" || setenv BOOT_b_LEFT 0
setenv slot
for each in "${BOOT_ORDER}"; do
  if test "x${slot}" = "x"; then
    if test "x${each}" = "xa" && test ${BOOT_a_LEFT} -gt 0; then
      setenv slot a
      test ${BOOT_a_LEFT} -eq 99 || setexpr BOOT_a_LEFT ${BOOT_a_LEFT} - 1
    fi
    if test "x${each}" = "xb" && test ${BOOT_b_LEFT} -gt 0; then
      setenv slot b
      test ${BOOT_b_LEFT} -eq 99 || setexpr BOOT_b_LEFT ${BOOT_b_LEFT} - 1
    fi
  fi
done
saveenv
if test "x${slot}" = "x"; then
  echo "No slot has tries left: trying both again"
  setenv BOOT_a_LEFT 3; setenv BOOT_b_LEFT 3; saveenv; reset
fi
load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} /EFI/sluice/${slot}.efi && bootefi ${kernel_addr_r}
reset
