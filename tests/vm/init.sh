#!/bin/busybox sh
# First process of the test machine: mounts, runs /test/run, hands the results to
# the second serial port as one tar.gz, and powers off.
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /tmp /run /results /etc
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
uname -r > /results/release
cat /sys/kernel/debug/sched/preempt > /results/preempt
echo "vm: kernel $(cat /results/release), preempt $(cat /results/preempt), up $(cut -d' ' -f1 /proc/uptime) s"
{
    sh /test/run
    echo $? > /results/exit
} 2>&1 | tee /results/drive.log
dmesg > /results/dmesg
echo "vm: sending results, up $(cut -d' ' -f1 /proc/uptime) s"
tar -C /results -czf /tmp/results.tar.gz .
stty -F /dev/ttyS1 raw -echo
cat /tmp/results.tar.gz > /dev/ttyS1
echo "vm: power off, up $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
