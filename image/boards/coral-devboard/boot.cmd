# Takes the first slot of BOOT_ORDER that has tries left, counts it down, and starts its kernel image through U-Boot's UEFI.
# 99 is "has proved itself" and is not counted down.
setenv slot
setenv left
setenv changed
# Distribution boot and standard boot tell where this script lies. A board with a boot command of its own has mmcdev and mmcpart.
setenv from "${devtype} ${devnum}:${distro_bootpart}"
test -n "${distro_bootpart}" || setenv from "mmc ${mmcdev}:${mmcpart}"
setenv at ${kernel_addr_r}
test -n "${at}" || setenv at ${loadaddr}
test -n "${BOOT_ORDER}" || setenv changed lost
test -n "${BOOT_a_LEFT}" || setenv changed lost
test -n "${BOOT_b_LEFT}" || setenv changed lost
if test -n "${changed}"; then
  setenv BOOT_ORDER "a b"
  setenv BOOT_a_LEFT 99
  setenv BOOT_b_LEFT 0
  # Not a new board: the environment was lost, and nobody knows which of the two is good. Each has to prove itself.
  if test -e ${from} /EFI/sluice/b.efi; then
    setenv BOOT_a_LEFT 3
    setenv BOOT_b_LEFT 3
  fi
fi
for each in ${BOOT_ORDER}; do
  if test "x${slot}" = "x"; then
    if test "x${each}" = "xa" && test ${BOOT_a_LEFT} -gt 0; then
      setenv slot a
      setenv left ${BOOT_a_LEFT}
      test ${left} -eq 99 || setexpr BOOT_a_LEFT ${left} - 1
    fi
    if test "x${each}" = "xb" && test ${BOOT_b_LEFT} -gt 0; then
      setenv slot b
      setenv left ${BOOT_b_LEFT}
      test ${left} -eq 99 || setexpr BOOT_b_LEFT ${left} - 1
    fi
  fi
done
if test "x${slot}" = "x"; then
  echo "No slot has tries left: trying both again"
  setenv BOOT_a_LEFT 3
  setenv BOOT_b_LEFT 3
  saveenv
  reset
fi
# A power cut meanwhile loses the environment: it is written only where something has changed.
test ${left} -eq 99 || setenv changed counted
test -z "${changed}" || saveenv
fatload ${from} ${at} /EFI/sluice/${slot}.efi && bootefi ${at}
# What cannot be started any more is counted again, so that the turn of the other slot comes.
test ${left} -ne 99 || setenv BOOT_${slot}_LEFT 3
test ${left} -ne 99 || saveenv
reset
