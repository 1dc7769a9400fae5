# Every target works on a fresh clone; what it needs is made first.
#   make demo [DATA=folder] [KEEP=1]   a beamline's day in a minute
#   make serve                         the suite stays up in the foreground
#   make test | test-long | lint | docs | clean

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
DATA ?=
KEEP ?=

.PHONY: install developer demo serve test test-long test-deps lint format docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV); the first time takes a minute."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian: sudo apt-get install python3-venv"; exit 1; }
	@$(BIN)/python $(PIP_INSTALL) --editable .
	@touch $@

# What developers need besides; trying DM out goes without.
developer: $(VENV)/.developer

$(VENV)/.developer: $(VENV)/.installed
	@echo "Installing what tests, lint and docs need into $(VENV)."
	@$(BIN)/python $(PIP_INSTALL) --editable '.[dev,test,docs]'
	@touch $@

# The published clients pin their own dependencies and are tried from a venv of their own.
$(CLIENTS)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing the published clients into $(CLIENTS)."
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python $(PIP_INSTALL) --editable '.[clients]'
	@touch $@

.PHONY: clients
clients: $(CLIENTS)/.installed

demo: install
	@$(BIN)/dm-quickstart $(if $(DATA),--data '$(DATA)') $(if $(KEEP),--keep)

serve: install
	@$(BIN)/dm-serve

# Programs the tests talk to. Only installing them needs root; without root it says what is missing.
TEST_PROGRAMS := rsync sshd curl strace gcc globus-url-copy globus-gridftp-server grid-proxy-init myproxy-logon myproxy-server \
	sge_qmaster sge_execd qacct slurmctld slurmd slurmdbd sbatch munged mariadbd slapd ldapadd nslcd nginx setfacl
test-deps:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=""; \
	for program in $(TEST_PROGRAMS); do command -v $$program >/dev/null 2>&1 || missing="$$missing $$program"; done; \
	test -z "$$missing" && exit 0; \
	packages=$$(echo $$missing | sed -e "s/sshd/openssh-server openssh-client/" -e "s/gcc/gcc libc6-dev/" -e "s/globus-url-copy/globus-gass-copy-progs/" \
		-e "s/globus-gridftp-server/globus-gridftp-server-progs/" -e "s/grid-proxy-init/globus-proxy-utils/" -e "s/myproxy-logon/myproxy/" \
		-e "s/sge_qmaster/gridengine-master/" -e "s/sge_execd/gridengine-exec/" -e "s/qacct/gridengine-client/" \
		-e "s/sbatch/slurm-client/" -e "s/munged/munge/" -e "s/mariadbd/mariadb-server-core/" \
		-e "s/ldapadd/ldap-utils/" -e "s/nginx/nginx-light/" -e "s/nslcd/nslcd libnss-ldapd/" -e "s/setfacl/acl/"); \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		policy=/usr/sbin/policy-rc.d; `# no daemon of theirs starts, no name service changes` \
		test -e $$policy || { trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; }; \
		echo "libnss-ldapd libnss-ldapd/nsswitch multiselect" | debconf-set-selections; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$packages >/dev/null; \
	else \
		echo "The tests need:$$missing. Install them, for example: sudo apt-get install $$packages"; exit 1; \
	fi

# Tests wait more than they work, so two halves run side by side: what needs a whole suite, and single services.
test: developer clients test-deps
	@echo "Two halves run side by side; each shows its results when it is done."
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target test-suites test-services

.PHONY: test-suites test-services
test-suites:
	$(BIN)/python -m pytest -m "not long" tests/clients tests/system tests/faults

test-services:
	$(BIN)/python -m pytest -m "not long" tests/service tests/unit

test-long: developer clients test-deps
	$(BIN)/python -m pytest

lint: developer
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: developer
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: developer
	$(BIN)/python docs/generate.py
	$(BIN)/dm-config sample > etc/dm.sample.toml
	$(BIN)/python -m sphinx -W -q docs docs/_build

clean:
	rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
