# make demo and make test work on a fresh Debian or Ubuntu machine with Rust; see README.md.
CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

SHARE = $(DESTDIR)$(PREFIX)/share
PUBLISHED = --workspace --exclude packet-traits-bench --exclude packet-traits-testing

# Loading BPF programs and making namespaces needs root; cargo itself runs as who you are.
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
HOST = $(shell rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)

.PHONY: all demo test test-kernels test-devices test-distributions bench install uninstall setup setup-test setup-clang \
	setup-kernel setup-devices lint package clean

all: setup
	$(CARGO) build --release

setup:
	@tools/setup.sh build

setup-test:
	@tools/setup.sh test

# Traits on real traffic, in namespaces of its own.
demo: all
	$(AS_ROOT) target/release/traits demo

# The other kernels, where they can be fetched. Not at the same time as setup-test: apt runs once at a time.
setup-kernel: setup-clang
	@tools/setup.sh kernel

# The compilers that this distribution does not have.
setup-clang: setup-test
	@tools/setup.sh clang

lint: setup-clang
	$(CARGO) fmt --all --check
	tools/lint-c.sh
	tools/check-rfc.py
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	uses=$$($(CARGO) tree -p packet-traits-socket --all-features -e normal,build --prefix none) && \
		! echo "$$uses" | grep -E "libbpf|headers"
	$(CARGO) package $(PUBLISHED) --no-verify --exclude-lockfile --allow-dirty --quiet

# Builds each crate that is published from its package, with cargo 1.90 or later. In a folder of its own: cargo takes packages of an earlier run,
# which have the same version, for the same.
package: setup-test
	rm -rf target/packages $${CARGO_HOME:-$$HOME/.cargo}/registry/src/-*/packet-traits*
	$(CARGO) package $(PUBLISHED) --target-dir target/packages

# Everything: lint, unit, property, kernel and command tests; some of the kernel's on other kernels as well.
test: lint setup-kernel
	$(if $(AS_ROOT),CARGO_TARGET_$(HOST)_RUNNER="$(AS_ROOT)") $(CARGO) test --workspace --no-fail-fast
	$(CARGO) test --workspace --no-run --quiet --message-format=json | $(AS_ROOT) tools/test-kernels.py chosen

# Every kernel test on each kernel of tools/kernels and on this machine's, which takes hours; writes docs/kernels.md. It
# goes on where it was interrupted. KERNELS="6.1 newest" runs on these only, TESTS="traits/registry" these tests only;
# what is written of the others stays.
test-kernels: setup-kernel
	$(CARGO) test --workspace --profile emulated --no-run --quiet --message-format=json | \
		$(AS_ROOT) tools/test-kernels.py all $(KERNELS) $(TESTS)

# A kernel with all drivers, and a QEMU with all network cards; without either, their tests are skipped by name.
setup-devices: setup-kernel
	@[ -e target/kernels/newest-devices/vmlinuz ] || \
		tools/fetch-kernel.sh newest-devices trixie-backports linux-image-amd64
	@qemu-system-x86_64 -device igb,help 2>&1 | grep -qFx "igb options:" || [ -e target/qemu ] || tools/fetch-qemu.sh || true

# Traits over every device there is, in an emulated machine: writes docs/devices.md. Not part of `make test`, which tests
# the devices that this machine has.
test-devices: setup-devices
	$(CARGO) test -p packet-traits --test devices --no-run --quiet --message-format=json | \
		$(AS_ROOT) tools/test-devices.py

# The demo in clean trees of Debian 12 and 13, of what is committed; writes docs/distributions.md. SUITES=trixie tries this one
# only, and writes nothing.
test-distributions:
	@tools/setup.sh distributions
	mkdir -p target/distributions
	git archive --output target/distributions/source.tar HEAD
	$(AS_ROOT) tools/test-distributions.sh "$$(rustc --print sysroot)" "$${CARGO_HOME:-$$HOME/.cargo}" \
		"$$(git rev-parse HEAD)" $(SUITES)

bench: all
	$(AS_ROOT) target/release/traits bench ops
	$(AS_ROOT) target/release/traits bench sockets
	$(AS_ROOT) target/release/traits bench trace
	$(AS_ROOT) target/release/traits bench policy
	$(AS_ROOT) target/release/traits bench containers
	$(AS_ROOT) target/release/traits bench border

# The command, the headers and the documentation. As who you are: make && sudo make install
install:
	install -Dm755 target/release/traits $(DESTDIR)$(PREFIX)/bin/traits
	install -Dm755 target/release/traits-bench $(DESTDIR)$(PREFIX)/bin/traits-bench
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	target/release/traits completions bash >$(SHARE)/bash-completion/completions/traits
	target/release/traits completions zsh >$(SHARE)/zsh/site-functions/_traits
	target/release/traits completions fish >$(SHARE)/fish/vendor_completions.d/traits.fish
	target/release/traits man $(SHARE)/man/man1
	for header in include/packet_traits/*.h; do \
		install -Dm644 $$header $(DESTDIR)$(PREFIX)/include/packet_traits/$${header##*/} || exit 1; \
	done
	for page in docs/*.md; do \
		install -Dm644 $$page $(DESTDIR)$(PREFIX)/share/doc/packet-traits/$${page##*/} || exit 1; \
	done

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/traits $(DESTDIR)$(PREFIX)/bin/traits-bench
	rm -f $(SHARE)/bash-completion/completions/traits $(SHARE)/zsh/site-functions/_traits
	rm -f $(SHARE)/fish/vendor_completions.d/traits.fish $(SHARE)/man/man1/traits.1 $(SHARE)/man/man1/traits-*.1
	for header in include/packet_traits/*.h; do \
		rm -f $(DESTDIR)$(PREFIX)/include/packet_traits/$${header##*/}; \
	done
	for page in docs/*.md; do \
		rm -f $(DESTDIR)$(PREFIX)/share/doc/packet-traits/$${page##*/}; \
	done
	-rmdir $(DESTDIR)$(PREFIX)/include/packet_traits $(DESTDIR)$(PREFIX)/share/doc/packet-traits

clean:
	$(CARGO) clean
