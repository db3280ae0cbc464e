#!/bin/sh
# Register the newest build of an image that its publisher replaces in place, with the checksum of the day.
#
#   refresh.sh NAME BASE_URL FILE
#
# BASE_URL/SHA256SUMS must have exactly one line for FILE. An unchanged checksum makes the same event, which the hosts
# know already. The checksum is as trustworthy as the HTTPS connection that brought it.
set -eu
export LC_ALL=C # ranges such as A-Z are those of ASCII

if [ $# -ne 3 ]; then
    echo "usage: refresh.sh NAME BASE_URL FILE" >&2
    exit 2
fi
name=$1 base=${2%/} file=$3

sums=$(curl --fail --silent --show-error --location --max-time 60 --max-filesize 1000000 "$base/SHA256SUMS")
checksum=$(printf '%s\n' "$sums" | awk -v file="$file" '$2 == file || $2 == "*" file { print tolower($1) }')

case "$checksum" in
    *[!0-9a-f]*) checksum=invalid ;; # of two lines the line break between them is found here
esac
if [ ${#checksum} -ne 64 ]; then
    echo "refresh.sh: $base/SHA256SUMS: expected one line with a SHA-256 checksum of $file" >&2
    exit 1
fi

exec "$(dirname "$0")/register.sh" "$name" "$base/$file" "{SHA-256}$checksum"
