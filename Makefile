# Everything that people and CI call. `make help` lists it.
VENV := .venv
BIN := $(VENV)/bin
LAB := $(BIN)/python -m lab
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.DEFAULT_GOAL := help
.PHONY: help setup lint types model unit fuzz chaos chaos-lab stock bench bench-native bench-back-channel bench-pages bench-proxy bench-colo-compare bench-colo-compare-live bench-channel bench-plan bench-fleet bench-helper bench-replication bench-packets bench-redis lab-tests lab-full molecule test demo lab-up lab-down lab-reset lab-status lab-ssh clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done ## packages of this machine and the Python environment

$(VENV)/.done: pyproject.toml constraints.txt scripts/packages.txt
	scripts/install-packages
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

lint: setup ## ruff, yamllint, ansible-lint (production)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/ansible-lint

types: setup ## mypy, strict
	$(BIN)/mypy

unit: setup ## unit, property and contract tests: five minutes on two cores, no lab
	$(BIN)/pytest -q -n auto tests/unit

fuzz: setup ## every reader of a peer's bytes, coverage-guided, FUZZ_S seconds (60) each
	$(BIN)/pip install --quiet --constraint constraints.txt --group fuzz
	$(BIN)/python -m tests.fuzz.fuzz_streams --seconds $(or $(FUZZ_S),60)

chaos: setup ## CHAOS_FAULTS (1000) faults of CHAOS_SEED (1) on emulated hosts, on CHAOS_JOBS (2) at a time; goes on where it ended
	$(BIN)/python -m tests.chaos --faults $(or $(CHAOS_FAULTS),1000) --seed $(or $(CHAOS_SEED),1) --jobs $(or $(CHAOS_JOBS),2) \
		--journal build/chaos-$(or $(CHAOS_SEED),1).jsonl --report build/chaos-$(or $(CHAOS_SEED),1).md

model: setup ## who may run, explored exhaustively by spin: seconds
	model/check

chaos-lab: setup ## the same on the lab's hosts, one at a time: hours, recorded in docs/campaigns; CHAOS_FAULTS (300)
	$(BIN)/python -m tests.chaos --ground lab --faults $(or $(CHAOS_FAULTS),300) --seed $(or $(CHAOS_SEED),1) \
		--journal docs/campaigns/lab-$(or $(CHAOS_SEED),1).jsonl --report docs/campaigns/lab-$(or $(CHAOS_SEED),1).md

stock: setup ## our save helper against Debian's own, over a shim, without Xen: under two minutes (Debian 12)
	$(BIN)/pytest -q tests/stock

bench-native: setup ## both helpers' time to save and to restore, over the same shim
	$(BIN)/python -m bench.helper_native

bench-back-channel: setup ## dirty bitmaps as they travel, against upstream's list of 8 bytes a frame
	$(BIN)/python -m bench.back_channel

bench-pages: setup ## the helper's page pipeline on an emulated domain, against memcpy and a bare pipe
	$(BIN)/python -m bench.pages

bench-proxy: setup ## the proxy parsing and comparing two guests' packets, against reading their headers
	$(BIN)/python -m bench.proxy

bench-colo-compare: setup ## our comparator against QEMU's colo-compare on the same frames (Debian 12): under five minutes
	$(BIN)/python -m bench.colo_compare

bench-colo-compare-live: setup lab-up ## the same on what a real guest's two copies say, captured on the lab (Debian 12): 20 minutes
	$(BIN)/python -m bench.colo_compare_live

bench-channel: setup ## our SSH channels against ssh -L with the same cipher, over a real sshd on loopback: under five minutes
	scripts/install-packages scripts/bench-packages.txt
	$(BIN)/python -m bench.channel

bench-plan: setup ## plans for fleets of 10, 100 and 1,000 hosts, against the emptiest host first
	$(BIN)/python -m bench.plan

bench-fleet: setup ## run time of playbooks with 10 and 100 pairs of hosts that answer at once, against a ping of as many: four minutes
	$(BIN)/python -m bench.fleet

bench-helper: setup lab-up ## our save helper against Xen's own under real xl, on the lab
	$(BIN)/ansible-playbook playbooks/site.yml
	$(BIN)/python -m bench.helper_lab

bench-replication: setup lab-up ## our replicator against stock xl remus, on the lab
	$(BIN)/ansible-playbook playbooks/site.yml
	$(BIN)/python -m bench.replication_lab

bench-packets: setup lab-up ## what a client waits for: unprotected, outputs compared, outputs held; on the lab
	$(BIN)/ansible-playbook playbooks/site.yml
	$(BIN)/python -m bench.packets_lab

bench-redis: setup lab-up ## Redis under redis-benchmark: unprotected, outputs compared, outputs held; on the lab
	scripts/install-packages scripts/bench-packages.txt
	$(BIN)/python -m bench.redis_lab

bench: bench-native bench-back-channel bench-pages bench-proxy bench-colo-compare bench-colo-compare-live bench-channel bench-plan bench-fleet bench-helper bench-replication bench-packets bench-redis ## all benchmarks, each against a peer in the same run

lab-tests: setup ## the demo's job, that the lab leaves nothing behind, and what playbooks refuse, on real Xen
	$(BIN)/pytest -v --durations=0 --durations-min=1 -m 'not full' tests/lab

lab-full: setup ## every test on the lab: protection, faults, power-offs, pairings of save helpers, all scenarios of molecule: hours
	scripts/install-packages scripts/bench-packages.txt
	$(BIN)/pytest -v tests/lab
	PATH=$(CURDIR)/$(BIN):$$PATH molecule/run colo_vm
	PATH=$(CURDIR)/$(BIN):$$PATH molecule/run colo_witness

molecule: setup lab-up ## the roles on the lab's hosts: converge, idempotence, verify
	PATH=$(CURDIR)/$(BIN):$$PATH molecule/run

test: lint types model unit stock molecule lab-tests ## all of it: what CI runs

demo: setup ## the main job on real Xen, from nothing to a failover
	$(LAB) demo

lab-up: setup ## both hosts running (the first time: build the image and boot)
	$(LAB) up

lab-down: setup ## nothing of the lab runs any more
	$(LAB) down

lab-reset: setup ## both hosts as after their first boot, in seconds
	$(LAB) reset

lab-status: setup ## one line per host
	$(LAB) status

lab-ssh: setup ## log in: make lab-ssh HOST=xa
	$(LAB) ssh $(or $(HOST),xa)

clean: ## stop the lab and remove what was made here (the image cache stays)
	if [ -d $(VENV) ]; then $(LAB) down --purge; fi
	rm -rf build .lab $(VENV)
