# All targets of this tree; `make` alone lists them. Tools written in Go are pinned in internal/tools/go.mod and built into bin/tools.
# Scripts of more than a line are in build/.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory
.NOTPARALLEL:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
INIT    := internal/container/initbin/imageapi-init
KEEPER  := internal/driver/attach/web/keeperbin/imageapi-keeper
STATIC  := CGO_ENABLED=0 go build -trimpath
TOOLS   := bin/tools

export FUZZTIME ?= 6s
TIMEOUT  ?= 20m

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install the Debian packages that building and testing need (asks for root only if one is missing)
	@build/deps.sh

.PHONY: build
build: init ## build the static bin/imageapi-server and its client bin/imageapi
	@$(STATIC) -buildvcs=auto -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/imageapi-server ./cmd/imageapi

.PHONY: modules
modules: ## download all Go modules of the tree into an empty cache, as on a new machine
	@build/modules.sh

.PHONY: sbom
sbom: build ## write the bill of materials of the server to bin/imageapi-server.cdx.json (CycloneDX)
	@go run ./build/sbom bin/imageapi-server '$(VERSION)' >bin/imageapi-server.cdx.json

.PHONY: package
package: build $(TOOLS)/nfpm ## build the packages for Debian and EL9, each twice, and fail if the two differ
	@build/package.sh --twice '$(VERSION)'

$(TOOLS)/nfpm: internal/tools/nfpm/go.mod internal/tools/nfpm/go.sum
	@cd internal/tools/nfpm && GOBIN=$(CURDIR)/$(TOOLS) go install tool
	@touch $@

.PHONY: reproducible
reproducible: export VERSION := $(VERSION)
reproducible: ## build the server twice, in different places, and fail if the two differ
	@build/reproducible.sh

.PHONY: vulncheck
vulncheck: init tools ## look for known vulnerabilities in called code, and report if the list cannot be reached
	@build/vulncheck.sh

.PHONY: init
init: # the files that the server embeds: programs next to containers and devices, and the reference
	@$(STATIC) -ldflags '-s -w' -o $(INIT) ./cmd/imageapi-init
	@$(STATIC) -ldflags '-s -w' -o $(KEEPER) ./cmd/imageapi-keeper
	@gzip -9 -n -c docs/api/index.html >docs/api/index.html.gz

.PHONY: tools
tools: # swagger, openapi, staticcheck, errcheck, gotestsum, govulncheck, benchstat
	@cd internal/tools && GOBIN=$(CURDIR)/$(TOOLS) go install tool

.PHONY: generate
generate: tools ## generate models, restapi and client from swagger.yaml
	@build/generate.sh

.PHONY: generate-check
generate-check: tools ## fail if the generated code differs from swagger.yaml
	@build/generate.sh --check

.PHONY: validate
validate: tools ## check swagger.yaml against the Swagger 2.0 specification, and its conversion against that of OpenAPI 3
	@$(TOOLS)/swagger validate --stop-on-error swagger.yaml
	@$(TOOLS)/openapi <swagger.yaml >/dev/null

.PHONY: docs
docs: tools ## make the reference docs/api/index.html from swagger.yaml, and the site docs/site.zip from the guides (needs npm)
	@build/docs.sh
	@build/site.sh

.PHONY: lint
lint: init tools ## gofmt, go vet, staticcheck, errcheck, shellcheck, and the rules of internal/archtest
	@build/lint.sh

.PHONY: check
check: lint unit ## the static checks, and the tests that need no root

.PHONY: unit
unit: init tools ## the tests that need no root, with the race detector
	@build/test.sh unit -race -short ./...

.PHONY: root
root: build tools ## all tests against this machine's kernel, as root; one package at a time, since they share its devices
	@IMAGEAPI_SERVER=$(CURDIR)/bin/imageapi-server build/test.sh root -p 1 -count=1 -timeout $(TIMEOUT) ./...

.PHONY: browser
browser: build tools ## test the reference in a headless browser without a network
	@build/browser.sh

.PHONY: crash
crash: export IMAGEAPI_TEST_FULL = 1
crash: init tools ## kill the daemon and its processes at every action, and at random for ten minutes
	@TEST_FORMAT=standard-verbose build/test.sh crash -count=1 -timeout 3h ./test/crash

.PHONY: fuzz
fuzz: init ## run every fuzz target for FUZZTIME (default 6s)
	@build/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: build ## measure operations, and compare with the minimum of the kernel and with other programs; BENCH=rounds
	@build/deps.sh && build/deps.sh build/packages-bench
	@$(MEASURE) TestTable ./test/bench

.PHONY: bench-growth
bench-growth: build ## measure how costs grow with mounts, containers and levels; draws docs/growth.svg
	@$(MEASURE) TestGrowth ./test/bench

.PHONY: bench-images
bench-images: build ## measure formats of images
	@$(MEASURE) TestImages ./test/bench

.PHONY: bench-check
bench-check: tools ## compare with another commit, OLD=commit, and fail if this one is slower beyond the noise
	@build/bench-check.sh '$(OLD)'

.PHONY: bench-go
bench-go: init # the benchmarks of single functions
	@go test -run '^$$' -bench . -benchmem ./...

# What is measured is a server as it is built, over its socket; BENCH is the number of rounds.
BENCH   ?= 20
MEASURE := IMAGEAPI_TEST_FULL=1 IMAGEAPI_BENCH=$(BENCH) IMAGEAPI_SERVER=$(CURDIR)/bin/imageapi-server go test -count=1 -timeout 1h -v -run

.PHONY: trace
trace: deps build ## show the system calls of one container start
	@test/bench/start-trace.sh

.PHONY: demo
demo: deps build ## run a SquashFS image as a container, show it, and delete everything
	@test/demo/demo.sh

.PHONY: test
test: ## all checks and tests of CI, in its order
	@rm -rf bin/report
	@$(MAKE) deps $(if $(filter true,$(CI)),modules)
	@$(MAKE) generate-check validate lint vulncheck reproducible sbom package lint-ceph build-ceph unit root browser fuzz vm-if-able
	@build/tally.sh

.PHONY: test-full
test-full: export IMAGEAPI_TEST_FULL = 1
test-full: export FUZZTIME = 2m
test-full: export TIMEOUT = 30m
test-full: export VM_LIMIT = 5400
test-full: test bench bench-go ## the same at full length, and the benchmarks

include build/ceph.mk
-include test/vm/vm.mk
