# What the guest of package reset runs, by /vm/run, after each reset. The rest is asked for through the agent.
modprobe virtio_net
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
exec /gantry/bin/agent
