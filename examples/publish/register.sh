#!/bin/sh
# Register a template: every kvmd host probes the URL and says what it found.
#
#   register.sh NAME URL [{ALGORITHM}CHECKSUM]
#
# The broker is $MQTT_HOST:$MQTT_PORT (127.0.0.1:1883). User name, password and TLS belong into
# ~/.config/mosquitto_pub, one option a line, where no process list shows them.
set -eu
export LC_ALL=C # ranges such as A-Z are those of ASCII

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: register.sh NAME URL [{ALGORITHM}CHECKSUM]" >&2
    exit 2
fi
name=$1 url=$2 checksum=${3:-}

case "$name" in
    '' | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*)
        echo "register.sh: $name: a name has letters, digits, dots, underscores and hyphens only" >&2
        exit 2
        ;;
esac
case "$url$checksum" in
    *[!!-~]* | *[\"\\]*)
        echo "register.sh: URL and checksum must be printable, without spaces, quotes and backslashes" >&2
        exit 2
        ;;
esac

data="{\"template\":\"$name\",\"url\":\"$url\""
if [ -n "$checksum" ]; then
    data="$data,\"checksum\":\"$checksum\""
fi

mosquitto_pub -h "${MQTT_HOST:-127.0.0.1}" -p "${MQTT_PORT:-1883}" \
    -q 1 -r -t "kvmd/v1/register/$name" -m "$data}"
