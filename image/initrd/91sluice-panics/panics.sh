#!/bin/sh
# Has the other slot started once where this one, which has proved itself, has ended in a panic three times and no start
# between them was found healthy (sluice-good.service) or went on for an hour (sluice-lasted.timer): either removes the dumps.
# The other slot is started only if it has proved itself too, by the id of its entry (/usr/lib/sluice/bootchooser). Without the
# firmware's variables nothing happens. Of a system on trial the boot loader itself counts the tries.
vars=${SLUICE_EFIVARS:-/sys/firmware/efi/efivars}
loader=4a67b082-0a4c-41cf-b6c7-440b29bb8c4f    # systemd's boot loader interface
crash=cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0     # the kernel's dumps; it lets what has this name be removed
scratch=${SLUICE_SCRATCH:-/run/sluice-panics}

# The first part of the first dump of a start; a panic that follows an oops makes two.
starts() {
    set -- "$vars"/dump-type0-1-1-*-"$crash"
    [ -e "$1" ] && echo $#
}

# The latest is what the log of the system that runs will have; its parts may be of two seconds. There is little space.
forget() {
    for last in "$vars"/dump-type0-1-1-*-"$crash"; do :; done
    began=$(time_of "$last")
    for each in "$vars"/dump-type0-*-"$crash"; do
        [ "$(time_of "$each")" -ge "$began" ] || rm -f "$each"
    done
}

# dump-type0-PART-COUNT-SECONDS-COMPRESSED-GUID
time_of() {
    rest=${1##*/dump-type0-}
    rest=${rest#*-*-}
    echo "${rest%%-*}"
}

# A file of variables is written in one call, the attributes first: non-volatile, for the loader, for the system.
put() {
    printf "\007\000\000\000$2" >"$scratch" && cat "$scratch" >"$vars/$1"
    status=$?
    rm -f "$scratch"
    return "$status"
}

modprobe -q efi_pstore
number=$(starts) || exit 0
if [ -e "$vars/LoaderBootCountPath-$loader" ]; then
    forget
    exit 0
fi
[ "$number" -ge 3 ] || exit 0
case " $(cat "${SLUICE_CMDLINE:-/proc/cmdline}") " in
    *' rauc.slot=a '*) this=a other=b ;;
    *' rauc.slot=b '*) this=b other=a ;;
    *) exit 0 ;;
esac
forget
echo "sluice: the system in slot $this has ended in a panic $number times; the one in slot $other is started" \
    >"${SLUICE_CONSOLE:-/dev/console}"
rm -f "$vars/SluiceLeft-$crash"
put "SluiceLeft-$crash" "$this" &&
    put "LoaderEntryOneShot-$loader" "s\000l\000u\000i\000c\000e\000-\000$other\000.\000c\000o\000n\000f\000\000\000" &&
    exec systemctl --force reboot
