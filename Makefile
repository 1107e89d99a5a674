# Every target is a command that one could type; README.md says what each is for.

.PHONY: up down test e2e validate fmt node

# The local platform, until Ctrl-C. UP='--port 9000' passes flags on; see: go run ./tools/local up --help
up: node
	@echo 'compiling tools/local, which takes a minute the first time'
	go run ./tools/local up $(UP)

down:
	go run ./tools/local down

# Everything that is checked without a cluster.
test:
	@test -z "$$(gofmt -l src tools)" || { gofmt -d src tools; exit 1; }
	go vet ./...
	go vet -tags e2e ./tools/local/e2e
	go test -race ./...
	go run ./tools/validate

# The local platform deploys, changes, prunes, refuses and heals. What it needs is built first, where one sees how far
# that is.
e2e: node
	go run ./tools/local build
	go run ./tools/local build --simulate
	go test -tags e2e -count 1 -timeout 80m -v ./tools/local/e2e

# Only the gate before merge, on this repository.
validate:
	go run ./tools/validate

fmt:
	gofmt -w src tools

# What a real node needs of the host. Without root, pods are simulated and nothing is needed.
node:
	@[ "$$(id -u)" -ne 0 ] || { command -v runc && command -v nft; } > /dev/null \
		|| ! command -v apt-get > /dev/null \
		|| { echo 'installing runc and nft' && apt-get update -qq \
			&& apt-get install --yes --no-install-recommends runc nftables; }
