#!/bin/sh
# Put a registered template into a storage pool of every host, or of the hosts that are named; or take it out again.
#
#   deploy.sh [-p POOL] [-e present|absent] TEMPLATE all|HOST...
#
# The broker is that of register.sh.
set -eu
export LC_ALL=C # ranges such as A-Z are those of ASCII

usage() {
    echo "usage: deploy.sh [-p POOL] [-e present|absent] TEMPLATE all|HOST..." >&2
    exit 2
}

require_name() {
    case "$1" in
        '' | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*)
            echo "deploy.sh: $1: a name has letters, digits, dots, underscores and hyphens only" >&2
            exit 2
            ;;
    esac
}

publish() {
    mosquitto_pub -h "${MQTT_HOST:-127.0.0.1}" -p "${MQTT_PORT:-1883}" -q 1 -r -t "kvmd/v1/deploy/$1" -m "$2"
}

pool=default ensure=present
while getopts p:e: option; do
    case "$option" in
        p) pool=$OPTARG ;;
        e) ensure=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || usage
case "$ensure" in
    present | absent) ;;
    *) usage ;;
esac

template=$1
shift
for name in "$template" "$pool" "$@"; do
    require_name "$name"
done

# One deployment a template and pool, so that a later call replaces this one.
deployment=$template
if [ "$pool" != default ]; then
    deployment=$template.$pool
fi
data="{\"template\":\"$template\",\"pool\":\"$pool\",\"ensure\":\"$ensure\"}"

if [ "$*" = all ]; then
    publish "all/$deployment" "$data"
    exit
fi
for host in "$@"; do
    publish "host/$host/$deployment" "$data"
done
