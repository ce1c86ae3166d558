# Tests in guests of QEMU with a stock Debian 12 kernel (6.1). TEST=regexp and PKG=packages choose among them.

.PHONY: vm
vm: build tools vm-image $(if $(TEST)$(PKG),,build-ceph $(TOOLS)/nfpm) ## run the root tests on a Debian 12 kernel in QEMU; TEST=regexp PKG=./package for some
	@TEST='$(TEST)' PKG='$(PKG)' CEPH_TAGS='$(CEPH_TAGS)' test/vm/run.sh

.PHONY: vm-if-able
vm-if-able: # the same where a guest can run; elsewhere a skipped test, with CI=true a failed one
	@test/vm/if-able.sh

.PHONY: vm-image
vm-image: # the guest's kernel and root image; kept in $XDG_CACHE_HOME/imageapi-vm until test/vm/image.sh changes
	@build/deps.sh test/vm/packages
	@SECONDS=0; test/vm/image.sh >/dev/null; ((SECONDS < 5)) || echo "vm: made the image in $$SECONDS s"

.PHONY: vm-node
vm-node: build vm-image # the server straight on an initrd
	@test/vm/node.sh

.PHONY: vm-package
vm-package: build vm-image $(TOOLS)/nfpm # install, upgrade and remove the Debian package under systemd
	@test/vm/package.sh

.PHONY: vm-initramfs
vm-initramfs: build vm-image # the example of docs/initramfs.md
	@test/vm/initramfs.sh

.PHONY: vm-services
vm-services: vm-image # that the NFS, iSCSI and Ceph servers of the guest serve
	@test/vm/services.sh

.PHONY: vm-fleet
vm-fleet: export IMAGEAPI_TEST_FULL = 1
vm-fleet: build tools vm-image ## boot 20 nodes from one slow server, in a guest
	@TEST_FORMAT=standard-verbose test/vm/tests.sh -n vm-fleet ./test/fleet

.PHONY: vm-crash
vm-crash: export IMAGEAPI_TEST_FULL = 1
vm-crash: build tools vm-image ## `make crash` for NFS, iSCSI, RBD and verity, in a guest; an hour
	@VM_LIMIT=5400 TEST_FORMAT=standard-verbose test/vm/tests.sh -n vm-crash './test/crash=^Test(KilledAtEachAct|EachActFails)$$/^(nfs|iscsi|rbd|verity)'

.PHONY: vm-shell
vm-shell: build vm-image ## a shell in that guest; leave it with exit
	@test/vm/guest.sh -i -t 86400 test/vm/guest/shell

.PHONY: vm-clean
vm-clean: # remove the guest's images
	@rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/imageapi-vm" bin/vm
