# The server with Ceph's libraries: before the kernel maps an image, it asks the cluster about it. It is the same server
# otherwise, but needs librbd and librados where it runs. The tag pacific is for libraries older than Ceph 17 (Debian 12).

CEPH_TAGS ?= ceph,pacific
CEPH_PACKAGE := ./internal/driver/attach/rbd

.PHONY: deps-ceph
deps-ceph: # the libraries, to build with
	@build/deps.sh build/packages-ceph

.PHONY: build-ceph
build-ceph: deps-ceph init ## build bin/imageapi-server-ceph, which asks Ceph clusters about images by librbd
	@CGO_ENABLED=1 go build -trimpath -tags '$(CEPH_TAGS)' -ldflags '-s -w -X main.version=$(VERSION)' \
		-o bin/imageapi-server-ceph ./cmd/imageapi-server

.PHONY: lint-ceph
lint-ceph: deps-ceph init tools # the checks and tests of what only this build has
	@go vet -tags '$(CEPH_TAGS)' $(CEPH_PACKAGE)/...
	@bin/tools/staticcheck -tags '$(CEPH_TAGS)' -checks 'all,-ST1000' $(CEPH_PACKAGE)/...
	@go test -short -tags '$(CEPH_TAGS)' $(CEPH_PACKAGE)/...
