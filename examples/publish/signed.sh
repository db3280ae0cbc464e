#!/bin/sh
# Sign an event and publish it: for hosts that take signed events only (policy.require_signature).
#
#   signed.sh TOPIC [FILE]
#
# TOPIC is such as register/deb12, deploy/all/deb12 or command/host/kvm01/cancel. FILE holds the event, or its data alone;
# without it standard input is read. The key is $SIGNING_KEY, such as the signing.key of `kvmctl keys add-publisher`.
# The broker is $MQTT_HOST:$MQTT_PORT (127.0.0.1:1883). TLS files belong into ~/.config/mosquitto_pub.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: signed.sh TOPIC [FILE]" >&2
    exit 2
fi
topic=kvmd/v1/${1#kvmd/v1/}

# A command is not kept for hosts that come later; everything else is.
case "$topic" in
    kvmd/v1/command/*) retain= ;;
    *) retain=-r ;;
esac

event=$(kvmctl sign "${2:--}" --topic "$topic" ${SIGNING_KEY:+--key "$SIGNING_KEY"})
printf '%s\n' "$event" | mosquitto_pub -h "${MQTT_HOST:-127.0.0.1}" -p "${MQTT_PORT:-1883}" -q 1 $retain -t "$topic" -s
