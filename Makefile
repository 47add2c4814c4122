# Everything a developer runs. `make help` lists it.
SHELL := /bin/bash
STACK := infra/local/stack
.DEFAULT_GOAL := help
.PHONY: dev start stop status test test-clusters faults fmt lint doc deny perf tour slo fuzz properties help clean-state

dev: ## Build and run everything in the foreground; Ctrl-C stops it
	@$(STACK) dev

start: ## Build and run everything in the background (then: source .agenthub/env)
	@$(STACK) start

stop: ## Stop what `make start` started
	@$(STACK) stop

status: ## Say what runs
	@$(STACK) status

test: ## Run every test against a Kafka and a Redis of their own
	@infra/local/test $(ARGS)

test-clusters: ## Kill brokers and Redis masters of real clusters under load (minutes)
	@infra/local/clusters

faults: ## Storm: 2,000 runs, 60 kills, restarts, cuts, and a checker's verdict (RUNS=… KILLS=… SEED=…)
	@STORM_RUNS=$(or $(RUNS),2000) STORM_KILLS=$(or $(KILLS),60) STORM_SEED=$(SEED) \
	STORM_REPORT=$(CURDIR)/.agenthub/faults infra/local/test --test it -- storm::a_storm --nocapture
	@echo "the verdict: .agenthub/faults/storm.txt"

fmt: ## Format the code
	cargo fmt

lint: ## Check the format and run clippy and, where it is installed, shellcheck
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -x .ci/run infra/local/{stack,test,clusters,fuzz,deny,smoke,schemathesis,tools} infra/local/lib/*.sh perf/{run,slo}; \
	else echo "shellcheck is not installed: the scripts were not checked"; fi

fuzz: ## Fuzz masking, keys, URLs and commands for a short while (SECONDS_EACH=20 TARGETS=mask)
	@infra/local/fuzz $(TARGETS)

properties: ## Run the property tests with many more cases (CASES=20000)
	@PROPTEST_CASES=$(or $(CASES),20000) infra/local/test --lib

perf: ## Measure against the floors and write perf/RESULTS.md
	@perf/run

tour: ## Walk through docs/tour.md on a stack of its own and write what its commands print
	@infra/local/tour

slo: ## Hold it to its service levels under a fixed load and write perf/SLO.md
	@perf/slo

doc: ## Build the documentation of the code
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

deny: ## Check licences, bans, sources and advisories of the dependencies
	@infra/local/deny

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

clean-state: ## Stop everything and delete the data, logs and keys of the local stack
	@unset STACK_STATE; $(STACK) stop
	@STACK_STATE=.agenthub/test $(STACK) stop
	@# Fetched tools and Kafka's files stay.
	find .agenthub -mindepth 1 -maxdepth 1 ! -name kafka ! -name tools -exec rm -rf {} +
	rm -rf .agenthub/kafka/data
