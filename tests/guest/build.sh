#!/bin/bash
# build.sh OUT   Makes OUT/disk.raw: a small Linux that boots from its own disk, and writes numbered
# records all the time (see init). From Debian's cloud kernel and busybox; nothing of them is
# installed on this machine but busybox-static. Needs root, for a loop mount.
#
# The disk: an MBR, one ext4 partition of 62 MiB with kernel and initramfs, records from 64 MiB on.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
work=$(mktemp -d)
cleanup() {
    mountpoint -q "$work/mnt" && umount "$work/mnt"
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"

newest_kernel() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '/Depends: linux-image/ { print $2; exit }'
}
package=$(newest_kernel)
if [ -z "$package" ]; then
    apt-get update -q >/dev/null
    package=$(newest_kernel)
fi
apt-get download -q "$package" >/dev/null
dpkg-deb --fsys-tarfile ./linux-image-*.deb |
    tar -x --wildcards './boot/vmlinuz-*' './lib/modules/*'

mkdir -p root/bin root/modules root/proc root/sys root/dev root/etc
cp /bin/busybox root/bin/
cp "$here/init" root/init
chmod +x root/init
# In this order: insmod looks for no dependencies.
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk \
    evdev button; do
    file=$(find lib/modules -name "$module.ko*" | head -n 1)
    # What is built in has no file.
    [ -n "$file" ] || continue
    case $file in
        *.xz) xz -dc "$file" >"root/modules/$module.ko" ;;
        *) cp "$file" "root/modules/$module.ko" ;;
    esac
    echo "$module.ko" >>root/modules/order
done
mknod root/dev/console c 5 1
(cd root && find . | LC_ALL=C sort | busybox cpio -o -H newc 2>/dev/null) | gzip -6 >initramfs.gz

truncate -s 128M disk.raw
echo '2048,126976,L,*' | sfdisk -q disk.raw
mkfs.ext4 -q -F -O '^64bit,^metadata_csum,^has_journal' -E offset=1048576 disk.raw 62M
mkdir mnt
mount -o "loop,offset=1048576,sizelimit=$((62 << 20))" disk.raw mnt
cp boot/vmlinuz-* mnt/vmlinuz
cp initramfs.gz mnt/
cat >mnt/extlinux.conf <<'END'
default linux
label linux
kernel /vmlinuz
append initrd=/initramfs.gz console=ttyS0 quiet panic=-1
END
extlinux --install mnt >/dev/null 2>&1
umount mnt
dd if=/usr/lib/syslinux/mbr/mbr.bin of=disk.raw conv=notrunc status=none
mv disk.raw "$out/disk.raw"
