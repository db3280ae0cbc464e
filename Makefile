# Everything sets itself up; `make help` lists the targets.
TEST_PACKAGES = apache2-bin aria2 caddy curl gnupg gpgv haproxy lighttpd mosquitto mosquitto-clients nfs-ganesha nfs-ganesha-vfs \
  nginx-light openssl qemu-utils strace systemd systemd-container tinyproxy-bin util-linux iproute2 \
  libvirt-daemon libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 seabios tini parted \
  libvirt-daemon-driver-storage-iscsi-direct qemu-block-extra tgt xfsprogs grub-common grub-pc-bin mtools xorriso
BUILD_PACKAGES = gcc libc6-dev libvirt-dev pkg-config python3-dev
BENCH_PACKAGES = aria2 curl diffutils gcc gzip libc6-dev libssl-dev nginx-light openssl qemu-utils zstd \
  grub-common grub-pc-bin libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system mtools qemu-system-x86 \
  seabios tini xorriso
KILLS ?= 300
URL ?=
CHECKSUM ?=

.PHONY: help demo test check system bench reference lock clean
help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: ## three hosts on this machine: register, deploy, ready (URL=... CHECKSUM=... for an image of your own)
	@.ci/venv requirements.lock
	@.venv/bin/python examples/demo/demo.py $(if $(URL),--url '$(URL)') $(if $(CHECKSUM),--checksum '$(CHECKSUM)')

test: ## all tests but the long fault loops
	@.ci/packages $(TEST_PACKAGES) $(BUILD_PACKAGES)
	@.ci/venv requirements-dev.lock
	.venv/bin/pytest -n 2 --dist loadscope -m 'not system'

system: ## the long fault loops (KILLS=300)
	@.ci/packages $(TEST_PACKAGES) $(BUILD_PACKAGES)
	@.ci/venv requirements-dev.lock
	CRASH_KILLS=$(KILLS) .venv/bin/pytest -m system

check: ## format, lint, types, architecture, spelling, generated reference
	@.ci/packages $(BUILD_PACKAGES)
	@.ci/venv requirements-dev.lock
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/basedpyright
	.venv/bin/lint-imports
	.venv/bin/codespell
	.venv/bin/python docs/generate.py --check

bench: ## speed beside aria2c, curl and a C program, what the daemon and looking at an image cost (BENCH_MIB=1024 for smaller files)
	@.ci/packages $(BENCH_PACKAGES) $(BUILD_PACKAGES)
	@.ci/venv requirements-dev.lock
	.venv/bin/python -m bench.transfer
	.venv/bin/python -m bench.daemon
	.venv/bin/python -m bench.trust
	.venv/bin/python -m bench.flood
	.venv/bin/python -m bench.decompress
	.venv/bin/python -m bench.inspection
	.venv/bin/python -m bench.machines

reference: ## write docs/reference anew
	@.ci/packages $(BUILD_PACKAGES)
	@.ci/venv requirements-dev.lock
	.venv/bin/python docs/generate.py

lock: ## pin the newest allowed versions of all packages
	@.ci/packages $(BUILD_PACKAGES)
	@.ci/venv requirements-dev.lock
	.venv/bin/pip install --quiet uv
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra lab --group build -o requirements.lock pyproject.toml
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra dev --group build -o requirements-dev.lock pyproject.toml

clean: ## remove what these targets made
	rm -rf .venv .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
