#!/bin/sh
# Install the Debian packages that this machine lacks, and only those.
#
#   system-packages.sh [--python PYTHON] PACKAGE...
#
# With --python, the interpreter that will make the virtual environment is also asked whether it can: Debian leaves
# `ensurepip` out of python3 and ships it in pythonX.Y-venv.
#
# Asks for nothing, says nothing when nothing is missing. Packages come from wherever this machine's apt gets them.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin  # an ordinary user's PATH leaves out where mosquitto and update-rc.d live

say() { printf '==> %s\n' "$*"; }
fail() { printf 'system-packages: %s\n' "$*" >&2; exit 1; }

python=
if [ "${1-}" = --python ]; then
    python=${2-}
    shift 2
    [ -n "$python" ] || fail 'no Python 3.11, 3.12 or 3.13 on the PATH. Install one (on Debian 12 or 13: apt-get install python3),
or name it: make PYTHON=/path/to/python3.12'
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
        fail "$python is $("$python" --version 2>&1); Python 3.11, 3.12 or 3.13 is needed. Name one: make PYTHON=/path/to/python3.12"
fi

can_make_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }

installed() {
    # "ii" is installed and configured; a package that was removed but left its configuration is not.
    [ "$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c1-2)" = ii ]
}

# A program that came without a package (built by hand, another distribution) serves as well.
program_of() {
    case $1 in
    mosquitto) echo mosquitto ;;
    mosquitto-clients) echo mosquitto_pub ;;
    *) echo "" ;;
    esac
}

present() {
    installed "$1" && return 0
    program=$(program_of "$1")
    [ -n "$program" ] || return 1
    command -v "$program" >/dev/null 2>&1
}

missing=
for package in "$@"; do
    present "$package" || missing="$missing $package"
done
if [ -n "$python" ] && ! can_make_venv; then
    missing="$missing $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
fi
missing=${missing# }
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null 2>&1 ||
    fail "please install by hand, this machine has no apt-get: $missing"
by_hand="Please have root run this, then try again:
    apt-get update && apt-get install --no-install-recommends $missing"
if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
    sudo -n true 2>/dev/null || sudo -v || fail "these packages are missing, and sudo did not let us install them. $by_hand"
else
    fail "these packages are missing, and there is no sudo here. $by_hand"
fi

# The demo starts a broker of its own, on its own port and files. Debian would start and enable a system-wide
# mosquitto on port 1883 as part of the installation, which nobody asked for. So for the time of the installation
# policy-rc.d (the hook that invoke-rc.d and systemd's maintainer scripts ask) forbids starting the packages that
# are installed here, and only those; afterwards the new unit is disabled, so the next boot does not start it.
# A policy-rc.d that this machine already has is left as it is. A package that was there before is never touched.
policy=/usr/sbin/policy-rc.d
made_policy=
cleanup() { [ -z "$made_policy" ] || $as_root rm -f "$policy"; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "installing from Debian:${as_root:+ (with $as_root)} $missing"
if [ ! -e "$policy" ]; then
    made_policy=yes
    pattern=$(echo "$missing" | sed 's/[^ ][^ ]*/&|&.service/g; s/ /|/g')
    $as_root sh -c "umask 022; cat >$policy; chmod 755 $policy" <<POLICY
#!/bin/sh
# Made by sluice's system-packages.sh for the time of one installation.
case \$1 in $pattern) exit 101 ;; esac
exit 0
POLICY
fi

apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 "$@"; }
log=$(mktemp)
apt update >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; fail 'apt-get update failed, see above'; }
# shellcheck disable=SC2086  # a list of names, on purpose
apt -o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold install --no-install-recommends $missing >"$log" 2>&1 ||
    { cat "$log" >&2; rm -f "$log"; fail "apt-get could not install: $missing"; }
rm -f "$log"

for package in $missing; do
    [ -e "/lib/systemd/system/$package.service" ] || [ -e "/etc/init.d/$package" ] || continue
    if [ -d /run/systemd/system ]; then
        $as_root systemctl disable --now --quiet "$package.service" 2>/dev/null || say "could not disable $package.service"
    else
        # A container, a chroot or another init: this changes the links that the next boot reads, also systemd's.
        $as_root update-rc.d "$package" disable >/dev/null 2>&1 || say "could not disable $package"
    fi
done

for package in "$@"; do
    present "$package" || fail "$package is still missing after its installation"
done
if [ -n "$python" ] && ! can_make_venv; then
    fail "$python still cannot make a virtual environment. Install ensurepip for it, or name another: make PYTHON=/usr/bin/python3"
fi
