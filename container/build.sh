#!/bin/sh
# The builder stage: puts everything that the image adds to its base into one folder, the same bytes each time.
#
# Usage, in the root of the source: build.sh TARGET. Takes the packages from `container/wheels` if that is there (see
# `make wheels`), else from where pip is told; every one by its hash. What compiles (no wheel for the platform) does so
# with the pinned tools of `build.txt` and not with whatever is newest that day.
set -eu
umask 022
target=$1
tools=/tmp/tools
export SOURCE_DATE_EPOCH PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1

from=
if [ -d container/wheels ]; then from="--no-index --find-links container/wheels"; fi
# shellcheck disable=SC2086  # none or three words
install() { python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-compile $from "$@"; }

install --require-hashes --target "$tools" --requirement container/build.txt
export PYTHONPATH="$tools"
install --require-hashes --no-build-isolation --target "$target/lib" --requirement container/requirements.txt
# Built elsewhere: the source stays as it is.
python3 -m pip wheel --quiet --no-cache-dir --disable-pip-version-check --no-index --no-deps --no-build-isolation \
    --wheel-dir /tmp/wheel .
rm -rf "$target/lib/bin" # pip's starters, which name the builder's interpreter
install --no-deps --no-index --target "$target/lib" /tmp/wheel/*.whl
unset PYTHONPATH

rm -rf "$target/lib/bin"
find "$target/lib" -name direct_url.json -delete # says where the wheel lay

mkdir "$target/bin"
printf '%s\n' '#!/usr/bin/env python3' 'import sys' '' 'from bridge.cli import main' '' 'sys.exit(main())' \
    >"$target/bin/bridge"
chmod 755 "$target/bin/bridge"

# Compiled ahead, for the root of a pod is read-only and each start would compile anew; with -OO too, as the daemon
# runs. By hash and unchecked, for a time stamp would be in the file. Without columns, a third smaller.
PYTHONNODEBUGRANGES=1 python3 -m compileall -q -j 1 -o 0 -o 2 --invalidation-mode unchecked-hash \
    -s "${target%/opt/device-bridge}" -p / "$target/lib"

python3 container/sbom.py "$target/lib" >"$target/sbom.cdx.json"
image=${target%/opt/device-bridge}
chmod -R u=rwX,go=rX "$image"
find "$image" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
